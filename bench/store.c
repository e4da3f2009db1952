// SPDX-License-Identifier: GPL-2.0
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "store.h"

#ifndef MFD_INACCESSIBLE
#define MFD_INACCESSIBLE	0x0020U
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB		(21U << 26)
#define MFD_HUGE_1GB		(30U << 26)
#endif

#define THP	"/sys/kernel/mm/transparent_hugepage/"
#define POOL	"/sys/kernel/mm/hugepages/hugepages-%lukB/nr_hugepages"

const struct store stores[] = {
	{ .name = "guest_memfd", .kind = GUEST_MEMFD, .granule = SZ_4K },
	{ .name = "shmem-huge", .kind = PRIVATE_MEMFD, .huge = true, .granule = SZ_4K },
	{ .name = "shmem-4K", .kind = PRIVATE_MEMFD, .granule = SZ_4K },
	{ .name = "hugetlb-2M", .kind = PRIVATE_MEMFD, .hugetlb = MFD_HUGE_2MB, .granule = SZ_2M },
	{ .name = "hugetlb-1G", .kind = PRIVATE_MEMFD, .hugetlb = MFD_HUGE_1GB, .granule = SZ_1G,
	  .min_size = SZ_1G },
	{ .name = "shared-THP", .kind = SHARED, .huge = true, .granule = SZ_4K },
	{ .name = "shared-4K", .kind = SHARED, .granule = SZ_4K },
};
const size_t nr_stores = ARRAY_SIZE(stores);

const struct store *store_by_name(const char *name)
{
	for (size_t i = 0; i < nr_stores; i++)
		if (!strcmp(stores[i].name, name))
			return &stores[i];
	errno = ENOENT;
	die("store %s", name);
}

bool store_there(const struct store *store)
{
	int want = store->hugetlb ? 2 : 1;
	struct vm vm;
	int have;

	if (store->kind != PRIVATE_MEMFD)
		return true;
	vm_create(&vm, 0);
	have = ioctl(vm.fd, KVM_CHECK_EXTENSION, KVM_CAP_PRIVATE_MEM);
	vm_destroy(&vm);
	return have > 0 && have & want;
}

/* Reserve pages of hugetlbfs for @size bytes; 1 GiB pages are the machine's (gigapages=N). */
static void fill_pool(const struct store *store, __u64 size)
{
	unsigned long nr = size / store->granule, there = 0;
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), POOL, (unsigned long)(store->granule >> 10));
	if (store->granule == SZ_2M)
		write_text(path, text("%lu", nr));
	f = fopen(path, "re");
	if (!f || fscanf(f, "%lu", &there) != 1 || there < nr) {
		errno = ENOMEM;
		die("%s: %lu of %lu pages", path, there, nr);
	}
	fclose(f);
}

/* What the next allocations in files of this kind will be. */
static void set_policy(const struct store *store)
{
	if (store->kind == PRIVATE_MEMFD && !store->hugetlb)
		write_text(THP "shmem_enabled", store->huge ? "advise" : "never");
}

static int open_file(struct mem *mem)
{
	const struct store *store = mem->store;
	struct kvm_create_guest_memfd gmem = { .size = mem->file_size };
	unsigned int flags = MFD_CLOEXEC | MFD_INACCESSIBLE;
	int fd;

	if (store->kind == GUEST_MEMFD) {
		fd = ioctl(mem->vm->fd, KVM_CREATE_GUEST_MEMFD, &gmem);
		if (fd < 0)
			die("KVM_CREATE_GUEST_MEMFD");
		return fd;
	}
	if (store->hugetlb)
		flags |= MFD_HUGETLB | store->hugetlb;
	fd = memfd_create("bench", flags);
	if (fd < 0 || ftruncate(fd, mem->file_size))
		die("%s: memfd_create, ftruncate", store->name);
	return fd;
}

/* The shared half, aligned to 1 GiB as the guest's addresses are. */
static void map_shared(struct mem *mem)
{
	__u8 *area = mmap(NULL, mem->size + SZ_1G, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (area == MAP_FAILED)
		die("mmap");
	mem->hva = (__u8 *)(((uintptr_t)area + SZ_1G - 1) & ~(uintptr_t)(SZ_1G - 1));
	if (mem->hva > area)
		munmap(area, mem->hva - area);
	munmap(mem->hva + mem->size, area + SZ_1G - mem->hva);
	if (mprotect(mem->hva, mem->size, PROT_READ | PROT_WRITE) ||
	    madvise(mem->hva, mem->size,
		    mem->store->kind == SHARED && !mem->store->huge ? MADV_NOHUGEPAGE :
								      MADV_HUGEPAGE))
		die("mprotect, madvise");
}

void mem_create(struct mem *mem, const struct store *store, struct vm *vm,
		__u64 size, int nr_files, int nr_slots)
{
	static const __u32 slot_flags[] = {
		[GUEST_MEMFD] = KVM_MEM_GUEST_MEMFD,
		[PRIVATE_MEMFD] = KVM_MEM_PRIVATE,
		[SHARED] = 0,
	};
	__u64 slot_size = size / nr_slots;

	*mem = (struct mem){
		.store = store,
		.vm = vm,
		.size = size,
		.file_size = size / nr_files,
		.nr_files = nr_files,
		.nr_slots = nr_slots,
		.fds = calloc(nr_files, sizeof(int)),
	};
	if (!mem->fds)
		die("calloc");
	set_policy(store);
	if (store->hugetlb)
		fill_pool(store, size);
	map_shared(mem);
	if (store->kind != SHARED)
		for (int i = 0; i < nr_files; i++)
			mem->fds[i] = open_file(mem);
	for (int i = 0; i < nr_slots; i++) {
		__u64 start = i * slot_size;

		vm_set_slot(vm, i, slot_flags[store->kind], MEM_GPA + start, slot_size,
			    mem->hva + start, mem->fds[start / mem->file_size],
			    start % mem->file_size);
	}
}

void mem_destroy(struct mem *mem)
{
	for (int i = 0; i < mem->nr_slots; i++)
		vm_set_slot(mem->vm, i, 0, MEM_GPA + i * (mem->size / mem->nr_slots), 0,
			    NULL, -1, 0);
	if (mem->store->kind != SHARED)
		for (int i = 0; i < mem->nr_files; i++)
			close(mem->fds[i]);
	munmap(mem->hva, mem->size);
	free(mem->fds);
	if (mem->store->granule == SZ_2M)
		fill_pool(mem->store, 0);
}

static void set_attributes(struct mem *mem, __u64 offset, __u64 len, __u64 attributes)
{
	struct kvm_memory_attributes attr = {
		.address = MEM_GPA + offset,
		.size = len,
		.attributes = attributes,
	};

	if (ioctl(mem->vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &attr))
		die("KVM_SET_MEMORY_ATTRIBUTES");
}

static void files_fallocate(struct mem *mem, int mode, __u64 offset, __u64 len)
{
	while (len) {
		__u64 start = offset % mem->file_size;
		__u64 part = mem->file_size - start < len ? mem->file_size - start : len;

		if (fallocate(mem->fds[offset / mem->file_size], mode, start, part))
			die("%s: fallocate mode %d of %#llx at %#llx", mem->store->name, mode,
			    part, start);
		offset += part;
		len -= part;
	}
}

void mem_to_private(struct mem *mem, __u64 offset, __u64 len)
{
	if (mem->store->kind == GUEST_MEMFD)
		set_attributes(mem, offset, len, KVM_MEMORY_ATTRIBUTE_PRIVATE);
	else if (mem->store->kind == PRIVATE_MEMFD)
		files_fallocate(mem, 0, offset, len);
}

/* The peer keeps the memory until it is punched: two calls. */
void mem_to_shared(struct mem *mem, __u64 offset, __u64 len)
{
	if (mem->store->kind == GUEST_MEMFD)
		set_attributes(mem, offset, len, 0);
	if (mem->store->kind != SHARED)
		files_fallocate(mem, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, len);
}

void mem_touch(struct mem *mem, __u64 offset, __u64 len)
{
	vcpu_touch(&mem->vm->vcpus[0], MEM_GPA + offset, SZ_4K, len / SZ_4K);
}
