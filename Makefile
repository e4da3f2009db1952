# SPDX-License-Identifier: GPL-2.0
# The only interface: each verb is a tool in tools/. `make` prints help.

verbs := kernel test soak demo linux boot refresh series check bisect breaks compare bench tree man forward deb variants

# On the command line or in the environment; the tools read them there.
export LINUX OUT BUILD KERNEL T G B LIST J ACCEL SCALE SHOW FORCE FULL BENCH TIME QEMU_ARGS MAN_PAGES TO FLAVOUR
ifneq ($(origin CC),default)
export CC
endif

help:
	@sed -n 's/^#: //p' $(MAKEFILE_LIST)

$(verbs):
	@tools/$@

clean:
	rm -rf $(or $(BUILD),build)

.PHONY: help clean $(verbs)

#: make kernel    the patched kernel: tree in build/linux, image at build/out/bzImage
#: make test      the tests, from nothing; last line "N passed, N failed, N skipped"
#: make demo      Debian's kernel in private memory, and the control in ordinary memory: a verdict
#: make linux     the same kernel on each kind of memory: docs/linux-guest.md
#: make bench     the measurements: docs/bench.md, and a verdict for each claim; BENCH=quick the headlines only
#: make soak      the tests of group soak for TIME each (90, 10m, 2h)
#: make boot      a shell in the guest
#: make refresh   commits of build/linux back into patches/ and linux/
#: make series    the series as numbered mails in build/out/series/
#: make man       the man pages, as they read with what the series adds
#: make forward   carry the series to another kernel: TO=VERSION of Debian's linux-source, or a tarball
#: make deb       installable packages from Debian's configuration, in build/deb: hours, goes on where it was; FLAVOUR=amd64
#: make variants  what the series touches, compiled in each of configs/variants; FULL=1 at each commit
#: make breaks    break each rule of the design on purpose, and see its test go red; B=NAME or pattern: tests/breaks
#: make clean     remove build/
#:
#: Variables: T=name[,name] or G=group[,group] choose tests (tests/list), KERNEL=normal|modular|debug|kcsan|deb|base the kernel (configs/),
#: J=N jobs, ACCEL=tcg|auto|hw the machine, FORCE=1 discards commits of build/linux that were not written back.
#: LINUX=, OUT=, BUILD= use a kernel tree of your own as it is, its object folder, and another work folder.
