#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What inspect says from outside of a VMM, against what the VMM says of itself
# at the same moment. Run beside vmm, inspect and the kernel bzImage. TAP.

# shellcheck disable=SC2317 # verdict calls what it is told to
cd "${0%/*}" || exit 2
tmp=$(mktemp -d)
pid=''
trap '[ -z "$pid" ] || kill $pid; rm -rf "$tmp"' EXIT
mkfifo "$tmp/input"
count=0 failed=0

verdict() # NAME COMMAND...
{
	name=$1
	count=$((count + 1))
	shift
	if "$@" > "$tmp/why" 2>&1; then
		echo "ok $count $name"
	else
		failed=$((failed + 1))
		echo "not ok $count $name"
		sed 's/^/# /' "$tmp/why" "$tmp/seen" "$tmp/err"
	fi
}

start() # WAIT-FOR ARGS...: a VMM that goes on until leave
{
	wait_for=$1
	shift
	./vmm "$@" < "$tmp/input" > "$tmp/said" 2>&1 &
	pid=$!
	exec 3> "$tmp/input"
	tries=0
	until grep -qE "$wait_for" "$tmp/said" || [ $tries -ge 600 ]; do
		tries=$((tries + 1))
		sleep 0.2
	done
}

leave()
{
	exec 3>&-
	wait $pid
	pid=''
}

look() { ./inspect "${@:-$pid}" > "$tmp/seen" 2> "$tmp/err"; }

ranges() { grep -E '^ +0(x[0-9a-f]+)?-0x' "$1"; }

same_map() { ranges "$tmp/said" > "$tmp/1"; ranges "$tmp/seen" | diff "$tmp/1" - && [ -s "$tmp/1" ]; }

# The VMM leaves out what is 0; debugfs has the sums of the vCPUs, too.
same_stats() # [NAMES]
{
	sed -n 's/^    vm //p' "$tmp/said" | grep -E "${1:-.}" | sort > "$tmp/1"
	sed -n '/^VM/,$s/^    \([a-z].*\)/\1/p' "$tmp/seen" | grep -v ' 0$' | grep -E "${1:-.}" | sort |
		diff "$tmp/1" - && [ -s "$tmp/1" ]
}

says() { grep -E "$1" "$tmp/seen" || { echo "inspect doesn't say: $1"; false; }; }
complains() { grep -E "$1" "$tmp/err" || { echo "inspect doesn't complain: $1"; false; }; }

# --- the small guest, which converts; at its end the VMM keeps everything as it is
start 'keeps the VM' private -c -d -w
verdict 'a file sealed at birth' look
verdict '... its seals' says '^  seals: INACCESSIBLE EXEC SEAL$'
verdict '... its private map is what the VMM says' same_map
verdict '... the statistics are those the VMM has' same_stats
verdict '... conversions were counted' says '^    private_conversions [1-9]'
verdict '... the same from debugfs' look -d $pid
verdict '... as far as it is the same' same_stats '^private_'
leave

start 'keeps the VM' lazy -d -w
verdict 'a file sealed later, allocated lazily' look
verdict '... its seals' says '^  seals: INACCESSIBLE EXEC$'
verdict '... its private map is what the VMM says' same_map
verdict '... the statistics are those the VMM has' same_stats
verdict 'another user is refused' sh -c "! su -s /bin/sh nobody -c './inspect $pid' > '$tmp/seen' 2> '$tmp/err'"
verdict '... and told so' complains '/proc/[0-9]+/fd: Permission denied'
leave

# --- Linux at work: its RAM is private, all of it
start 'the guest boots' private -m 64M -k bzImage
verdict 'a guest at work' look
verdict '... all of its RAM is private' says '^  private: 65536 KiB, ranges: 1$'
sleep 1
faults() { sed -n 's/^    private_faults //p' "$tmp/seen"; }
before=$(faults)
look
verdict '... which it uses more and more' [ "$(faults)" -gt "$before" ]
kill $pid
leave

# --- nothing to see
start 'keeps the VM' ordinary -w
verdict 'ordinary RAM' look
verdict '... is no inaccessible memfd' says '^no inaccessible memfd$'
leave
look 1
verdict 'another process' says '^no inaccessible memfd$'
verdict 'no such process' sh -c '! ./inspect 999999999'

echo "1..$count"
exit $((failed > 0))
