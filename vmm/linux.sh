#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Run Linux on a store whose huge pages are a matter of the host's policy:
# linux shmem|shmem-huge|hugetlb-2m KIND [options of vmm]

knob=/sys/kernel/mm/transparent_hugepage/shmem_enabled
store=$1 kind=$2
shift 2
case $store in
shmem) policy=never ;;
shmem-huge) policy=always ;;
hugetlb-2m) policy='' ;;
*) echo "linux: no store is called $store"; exit 2 ;;
esac

if [ -n "$policy" ]; then
	old=$(sed 's/.*\[\(.*\)\].*/\1/' $knob)
	trap 'echo "$old" > $knob' EXIT
	echo "$policy" > $knob || exit 2
else
	set -- -b hugetlb "$@"
fi
echo "== Linux, $kind, $store, $*"
"${0%/*}/vmm" "$kind" "$@"
