#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The demonstration, run beside vmm and a kernel: exit code 0 if all is as
# promised, 1 if not.

dir=${0%/*} kernel=${1:-vmlinuz-debian}
good='' bad=''

run()
{
	what=$1
	shift
	echo "== $what"
	if "$dir/vmm" "$@" -k "$dir/$kernel" -m 512M; then
		good="$good
  good  $what"
	else
		bad="$bad
  BAD   $what"
	fi
	echo
}

run 'Linux, all its RAM private' private
run 'control: the same on ordinary RAM' ordinary

echo "== demo$good$bad"
if [ -n "$bad" ]; then
	echo 'verdict: BAD'
	exit 1
fi
echo 'verdict: GOOD: no way to the private content, and all ways to the ordinary'
