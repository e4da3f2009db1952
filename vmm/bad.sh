#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# What must not work: each case ends with its exit code and its message, soon.
# Run beside vmm and the kernel bzImage. TAP.

cd "${0%/*}" || exit 2
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
count=0 failed=0

result() # NAME WANTED-CODE WANTED-MESSAGE CODE
{
	count=$((count + 1))
	if [ "$4" -eq "$2" ] && grep -qE -- "$3" "$tmp/out"; then
		echo "ok $count $1 # $(grep -aE -m 1 -- "$3" "$tmp/out" | tr '#' ' ')"
	else
		failed=$((failed + 1))
		echo "not ok $count $1: exit code $4, want $2 and \"$3\""
		tail -n 15 "$tmp/out" | sed 's/^/# /'
	fi
}

refuse() # NAME CODE MESSAGE ARGS...: vmm ends by itself
{
	name=$1 code=$2 message=$3
	shift 3
	./vmm "$@" > "$tmp/out" 2>&1 < /dev/null
	result "$name" "$code" "$message" $?
}

stop() # NAME SIGNAL MESSAGE SECONDS ARGS...: it is told to, after some time
{
	name=$1 signal=$2 message=$3 seconds=$4
	shift 4
	./vmm "$@" > "$tmp/out" 2>&1 < /dev/null &
	pid=$!
	sleep "$seconds"
	kill "-$signal" $pid
	wait $pid
	result "$name" 1 "$message" $?
}

# --- images
refuse 'no such kernel' 1 'none: No such file' private -k "$tmp/none"
refuse 'a folder for a kernel' 1 'not a file' private -k "$tmp"
: > "$tmp/empty"
refuse 'an empty kernel' 1 'not a file, or empty' private -k "$tmp/empty"
head -c 600 bzImage > "$tmp/header"
refuse 'a header and no kernel' 1 'too short|truncated' private -k "$tmp/header"
head -c 1000000 bzImage > "$tmp/truncated"
refuse 'a truncated kernel' 1 'truncated, 1000000 of' private -k "$tmp/truncated"
head -c 2000000 /dev/urandom > "$tmp/garbage"
refuse 'garbage for a kernel' 1 'not a bzImage' private -k "$tmp/garbage"
refuse 'an ELF file for a kernel' 1 'not a bzImage' private -k ./vmm
{ head -c 100000 bzImage; head -c "$(($(wc -c < bzImage) - 100000))" /dev/urandom; } > "$tmp/damaged"
refuse 'a kernel of garbage under a good header' 1 'triple fault|watchdog|gave up|memory fault' \
	private -k "$tmp/damaged" -t 20
refuse 'no such initrd' 1 'none: No such file' private -k bzImage -r "$tmp/none"
truncate -s 300M "$tmp/big"
refuse 'an initrd larger than RAM' 1 'big does not fit' private -k bzImage -r "$tmp/big"
refuse 'garbage for an initrd' 1 'the guest ended early' private -k bzImage -r "$tmp/garbage" -t 250
rm -f "$tmp/big"

# --- options
refuse 'no kind of RAM' 2 usage
refuse 'an unknown kind of RAM' 2 'not known: open' open -k bzImage
refuse 'an unknown option' 2 usage private -k bzImage -z
refuse 'a word too many' 2 'not an option: now' private -k bzImage now
refuse 'no vCPU' 2 'out of range: 0' private -k bzImage -n 0
refuse 'too many vCPUs' 2 'out of range: 65' private -k bzImage -n 65
refuse 'not a number' 2 'not a number: much' private -k bzImage -m much
refuse 'half a huge page' 2 'not a multiple of 2M' private -k bzImage -m 257M
refuse 'RAM beyond all addresses' 2 'out of range: 1000G' private -k bzImage -m 1000G
refuse 'RAM beyond all numbers' 2 'out of range' private -k bzImage -m 99999999999G
refuse 'too little RAM for the kernel' 1 'needs [0-9]+ MiB' private -k bzImage -m 18M
refuse 'a command line that is too long' 1 'command line is longer' \
	private -k bzImage -a "$(head -c 2100 /dev/zero | tr '\0' x)"

# --- memory that is not there
hugepages() { echo "$1" > /proc/sys/vm/nr_hugepages; }

hugepages 0
refuse 'no huge page for the kernel' 1 'filling guest RAM: No space left' private -k bzImage -b hugetlb
hugepages 60
refuse 'not enough huge pages' 1 'allocating 1024 MiB .*No space left' private -k bzImage -b hugetlb -m 1G
refuse '... found out when the guest wants them' 1 'memory fault at .*No space left' \
	lazy -k bzImage -b hugetlb -m 1G -t 250
hugepages 0

# Whatever is left in the cgroup then, the VMM is not killed while it says so: each limit leaves something else.
cgroup=/sys/fs/cgroup/vmm-bad
mkdir $cgroup
for pages in 0 7 14 21 28 35 42 49; do
	echo $(((200 << 20) + (pages << 12))) > $cgroup/memory.max
	(
		sh -c "echo \$\$ > $cgroup/cgroup.procs; exec ./vmm private -k bzImage -m 1G"
	) > "$tmp/out" 2>&1
	result "more RAM than the cgroup may have: 200M and $pages pages" 1 'allocating 1024 MiB.*Cannot allocate memory' $?
done
rmdir $cgroup

# --- guests that die
refuse 'a guest that panics' 1 'the guest ended early, by the' private -k bzImage -a rdinit=/none -t 250
refuse 'a guest that triple-faults' 1 'triple fault' private -k bzImage -a 'rdinit=/none reboot=t' -t 250
refuse 'all of its state is told' 1 'private, as lseek says' \
	private -k bzImage -a 'rdinit=/none reboot=t' -t 250 -d
refuse 'a guest that hangs' 1 'the watchdog stops' private -k bzImage -a rdinit=/bin/sh -t 8
refuse 'RAM taken from under a running guest' 1 'triple fault|ended early|gave up|watchdog' private -k bzImage -x -t 100
refuse 'the same with nothing behind it' 1 'triple fault|ended early|gave up|watchdog' lazy -k bzImage -x -t 100

# --- stopped from outside
stop 'Ctrl-C' INT 'stopped by Interrupt' 3 private -k bzImage
stop 'Ctrl-C with four vCPUs' INT 'stopped by Interrupt' 4 lazy -k bzImage -n 4
stop 'Ctrl-C at once' INT 'stopped by Interrupt' 0.1 private -k bzImage
stop 'SIGTERM' TERM 'stopped by Terminated' 3 private -k bzImage

echo "1..$count"
exit $((failed > 0))
