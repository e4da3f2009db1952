#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The demonstration, run beside vmm and guest.bin: exit code 0 if all is as
# promised, 1 if not.

dir=${0%/*}
good='' bad=''

run()
{
	what=$1
	shift
	echo "== $what"
	if "$dir/vmm" "$@"; then
		good="$good
  good  $what"
	else
		bad="$bad
  BAD   $what"
	fi
	echo
}

run 'private RAM, filled and sealed where the kernel can' private
run 'private RAM, the guest copying itself in' private -l copy
run 'private RAM, allocated lazily' lazy -l copy
run 'control: the same guest on ordinary RAM' ordinary

echo "== demo$good$bad"
if [ -n "$bad" ]; then
	echo 'verdict: BAD'
	exit 1
fi
echo 'verdict: GOOD: no way to the private content, and all ways to the ordinary'
