// SPDX-License-Identifier: GPL-2.0
/* KVM's binary statistics (Documentation/virt/kvm/api.rst, 4.133). */
#include <stdlib.h>
#include <unistd.h>

#include "vmm.h"

void for_each_stat(int fd, stat_fn fn, void *arg)
{
	struct kvm_stats_header head;
	struct kvm_stats_desc *desc;
	size_t size;
	__u64 value;
	__u32 i;

	if (pread(fd, &head, sizeof(head), 0) != sizeof(head))
		return;
	size = sizeof(*desc) + head.name_size;
	desc = malloc(size);
	for (i = 0; desc && i < head.num_desc; i++)
		if (pread(fd, desc, size, head.desc_offset + i * size) == (ssize_t)size &&
		    desc->size == 1 &&
		    pread(fd, &value, sizeof(value), head.data_offset + desc->offset) ==
		    sizeof(value))
			fn(arg, desc->name, value);
	free(desc);
}
