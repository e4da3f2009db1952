# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Sourced by every tool: where things are, headings with the elapsed time, and how to fail.
# shellcheck disable=SC2034 # what is set here is used by the tools

set -euo pipefail
export LC_ALL=C TZ=UTC

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$TOP" || exit 2

# What the user may set (see make help) becomes the names used inside: a tool that calls a tool passes on what the
# user said, never what was derived from it.
BUILD=$(realpath -m "${BUILD:-build}")
KERNEL=${KERNEL:-normal}
OWN_TREE=${LINUX:+yes}
TREE=$(realpath -m "${LINUX:-$BUILD/linux}")
KOUT=$(realpath -m "${OUT:-$BUILD/out/$KERNEL}")
J=${J:-$(nproc)}
LOGS=$BUILD/logs
# The unpatched tree is base's, or base-FRAGMENT's. Selftests depend on the tree, not on the kernel's configuration.
SELFTESTS=$BUILD/selftests/series
case $KERNEL in
base|base-*)
	SELFTESTS=$BUILD/selftests/base
	[ -n "$OWN_TREE" ] || TREE=$BUILD/linux-base
	;;
deb) # the same release and version string in the package and in what make test builds
	export LOCALVERSION='' KBUILD_BUILD_VERSION=1
	;;
esac

# What a kernel consists of, fragments of configs/ save for normal and base: debug-modular is lockdep, debug and modular.
parts=" ${KERNEL//-/ } "
parts=${parts/ debug / lockdep debug }

kernel_has() { # PART
	[[ $parts = *" $1 "* ]]
}

# Compiler cache: used when it is there, never needed.
if [ -z "${CC:-}" ]; then
	CC=gcc
	command -v ccache >/dev/null && CC="ccache gcc"
fi
export CCACHE_BASEDIR=${CCACHE_BASEDIR:-$BUILD}
export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' KBUILD_BUILD_USER=build KBUILD_BUILD_HOST=build

# die MESSAGE...: the harness itself broke (a test that fails is exit code 1).
die() {
	printf '%s: %s\n' "$(basename "$0")" "$*" >&2
	exit 2
}

# stage TITLE: a heading with the time since the first tool started.
START_SECONDS=${START_SECONDS:-$(date +%s)}
export START_SECONDS
stage() {
	local t=$(($(date +%s) - START_SECONDS))
	printf '== %02d:%02d  %s\n' $((t / 60)) $((t % 60)) "$*"
	printf '%d %s\n' $t "$*" >> "${STAGES:-/dev/null}"
}

# logged LOG COMMAND...: runs it with its output in LOG. A terminal sees the last line in place; a failure shows the
# end of the log.
logged() {
	local log=$1 rc=0
	shift
	mkdir -p "$(dirname "$log")"
	if [ -t 1 ]; then
		"$@" 2>&1 </dev/null | tee "$log" |
			awk '{ printf "\r\033[K   %.100s", $0; fflush() } END { printf "\r\033[K" }' || rc=$?
	else
		"$@" >"$log" 2>&1 </dev/null || rc=$?
	fi
	[ $rc -eq 0 ] && return 0
	grep -nE '(error|Error|\*\*\*)' "$log" | head -n 20 >&2 || true
	printf '...\n' >&2
	tail -n 20 "$log" >&2
	printf '   log: %s\n' "$log" >&2
	return $rc
}

# clean_make ARGS...: make that sees nothing of our variables; the kernel's Makefiles have their own of these names.
unset MAKEFLAGS MFLAGS MAKELEVEL
variables=(LINUX OUT BUILD KERNEL T G B LIST J ACCEL SCALE SHOW FORCE FULL BENCH TIME QEMU_ARGS MAN_PAGES TO FLAVOUR DRY STAGES)
clean_make() {
	env "${variables[@]/#/-u}" make "$@"
}

# verdict ok|FAIL WHAT: for tools that count by themselves, in passed and failed.
verdict() {
	printf '%-4s  %s\n' "$1" "$2"
	if [ "$1" = ok ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}

# work_tree FOLDER COMMIT: a work tree of the series' repository, if there is none yet.
work_tree() {
	[ ! -e "$1/.git" ] || return 0
	git -C "$TREE" worktree prune
	git -C "$TREE" worktree add -q --detach "$1" "$2"
}

# qemu_version: as the documents name it.
qemu_version() {
	qemu-system-x86_64 --version | sed -n '1s/ (.*//p'
}

# kmake ARGS...: make of the kernel tree into its output folder.
kmake() {
	clean_make -C "$TREE" O="$KOUT" ARCH=x86_64 CC="$CC" HOSTCC="$CC" -j"$J" "$@"
}

# uncommitted TREE: its changed and its new files. Not by .gitignore: Debian's hides every new file ("git add -f" it).
uncommitted() {
	git -C "$1" status --porcelain --untracked-files=no
	git -C "$1" ls-files --others -x '*.o' -x '*~' -x '.*.sw?' -x '.checkpatch*' -x '*.orig' -x '*.rej' -x local_config.mk -x local_config.h |
		sed 's/^/?? /'
}

# from_base KEY: a field of the file base.
from_base() {
	sed -n "s/^$1=//p" base
}

# series_lines: patches/series as "section|patch|overlay files", one line a patch.
series_lines() {
	awk -v OFS='|' '
		function flush() { if (name != "") print section, name, files; name = files = "" }
		/^# --- .* ---$/ { flush(); section = $0; next }
		/^[ \t]*(#.*)?$/ { next }
		/^[ \t]+\+ [^ \t]+$/ && name != "" { files = files (files == "" ? "" : " ") $2; next }
		/^[^ \t]+\.patch$/ { flush(); name = $0; next }
		{ printf "patches/series:%d: neither NAME.patch nor \"  + overlay/file\": %s\n", NR, $0 > "/dev/stderr"
		  bad = 1; exit }
		END { if (bad) exit 2; flush() }' patches/series
}

# series_keys START: for each patch the hash of everything the tree consists of up to it.
series_keys() {
	local key=$1 section name files f
	while IFS='|' read -r section name files; do
		key=$({
			printf '%s\n' "$key"
			cat "patches/$name"
			for f in $files; do
				printf '%s %s\n' "$f" "$(stat -c %A "linux/$f" | cut -c4)"
				cat "linux/$f"
			done
		} | sha256sum | cut -d' ' -f1)
		printf '%s\n' "$key"
	done < <(series_lines)
}

# fetch PACKAGE FILE DIR: unpack FILE of Debian's package (a pattern, ./usr/bin/x) into DIR, installing nothing. DIR is
# there afterwards, or nothing. apt's lists may have to be updated first.
fetch() {
	local log=$LOGS/fetch-$1.log sudo=
	mkdir -p "$LOGS"
	fetch_once "$@" > "$log" 2>&1 && return 0
	[ "$(id -u)" -eq 0 ] || sudo=sudo
	logged "$LOGS/apt-update.log" $sudo apt-get -q update
	fetch_once "$@" >> "$log" 2>&1
}

fetch_once() {
	rm -rf "$3.new"
	mkdir -p "$3.new"
	(
		cd "$3.new" && apt-get -q download "$1" &&
			dpkg-deb --fsys-tarfile ./*.deb | tar -x --wildcards "$2" && rm -f ./*.deb
	) || return 1
	rm -rf "$3"
	mv "$3.new" "$3"
}
