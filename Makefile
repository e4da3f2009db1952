# SPDX-License-Identifier: GPL-2.0
# The only interface: each verb is a tool in tools/. `make` prints help.

verbs := kernel test soak demo linux boot tree refresh series check bisect breaks compare bench man forward deb variants

# Variables come to the tools by the environment, wherever they were set; tools/lib.sh has the list.

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
#: make soak      the tests of group soak, or of G=, for TIME each (90, 10m, 2h)
#: make check     everything that needs no guest: the forms of the series, checkpatch, sparse, kernel-doc, documentation, scripts
#: make bisect    each commit builds without a warning, and boots
#: make compare   the original selftests on the base and on the patched kernel: docs/selftests-base-vs-patched.md
#: make boot      a shell in the guest
#: make tree      build/linux, the source with the series as commits, and nothing more
#: make refresh   commits of build/linux back into patches/ and linux/
#: make series    the series as numbered mails in build/out/series/
#: make man       the man pages, as they read with what the series adds
#: make forward   carry the series to another kernel: TO=VERSION of Debian's linux-source, or a tarball
#: make deb       installable packages from Debian's configuration, in build/deb: hours, goes on where it was; FLAVOUR=amd64
#: make variants  what the series touches, compiled in each of configs/variants; FULL=1 at each commit
#: make breaks    break each rule of the design on purpose, and see its test go red; B=NAME or pattern: tests/breaks
#: make clean     remove build/
#:
#: Variables: T=name[,name] or G=group[,group] choose tests (tests/list), LIST=file adds some, SCALE=N gives them more time,
#: KERNEL=normal|modular|debug|lockdep|kcsan|measured|small|deb|base is the kernel (configs/; also two in one: debug-modular),
#: CC= the compiler, J=N jobs, ACCEL=tcg|auto|hw the machine, QEMU_ARGS= more for it,
#: FORCE=1 discards commits of build/linux that were not written back.
#: LINUX=, OUT=, BUILD= use a kernel tree of your own as it is, its object folder, and another work folder.
