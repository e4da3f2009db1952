// SPDX-License-Identifier: GPL-2.0
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vmm.h"

/* --- where things are --- */

off_t ram_offset(const struct ram *ram, __u64 gpa, __u64 len)
{
	__u64 size = ram->config.size, low = MIN(size, RAM_HOLE_START);

	if (gpa < low && len <= low - gpa)
		return gpa;
	if (gpa < RAM_HOLE_END)
		return -1;
	gpa -= RAM_HOLE_END - RAM_HOLE_START;
	return gpa < size && len <= size - gpa ? (off_t)gpa : -1;
}

static __u64 ram_gpa(__u64 off)
{
	return off < RAM_HOLE_START ? off : off + RAM_HOLE_END - RAM_HOLE_START;
}

/* For what the guest asks: not empty, whole pages, in one piece. */
static off_t units_offset(const struct ram *ram, __u64 gpa, __u64 len)
{
	if (!len || (gpa | len) % ram->unit)
		return -1;
	return ram_offset(ram, gpa, len);
}

void *ram_shared_half(struct ram *ram, __u64 gpa, size_t len)
{
	off_t off = ram_offset(ram, gpa, len);

	if (off < 0)
		abort();
	return ram->hva + off;
}

bool ram_slot(const struct ram *ram, __u32 i, struct kvm_userspace_memory_region2 *slot)
{
	__u64 size = ram->config.size, start = 0, end = 0;
	__u64 step = ram->config.slot_size ?: size;

	for (i++; i && end < size; i--) {
		start = end;
		end = MIN(start + step, size);
		if (start < RAM_HOLE_START)
			end = MIN(end, RAM_HOLE_START);
	}
	*slot = (struct kvm_userspace_memory_region2){
		.guest_phys_addr = ram_gpa(start),
		.memory_size = end - start,
		.userspace_addr = (unsigned long)ram->hva + start,
	};
	if (ram_is_private(ram)) {
		slot->flags = ram->config.kind == RAM_GUEST_MEMFD ?
			      KVM_MEM_GUEST_MEMFD : KVM_MEM_PRIVATE;
		slot->guest_memfd = ram->fd;
		slot->guest_memfd_offset = start;
	}
	return !i;
}

/* --- conversions --- */

int ram_punch(struct ram *ram, off_t off, __u64 len)
{
	if (fallocate(ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len))
		return -errno;
	return 0;
}

/* RAM_LAZY: only what is shared has a shared half. */
static int expose(struct ram *ram, off_t off, __u64 len, bool shared)
{
	memset(ram->shared + off / PAGE_SIZE, shared, len / PAGE_SIZE);
	if (ram->config.kind != RAM_LAZY)
		return 0;
	if (mprotect(ram->hva + off, len, shared ? PROT_READ | PROT_WRITE : PROT_NONE))
		return -errno;
	return 0;
}

static int to_private(struct ram *ram, off_t off, __u64 len)
{
	if (ram->config.kind == RAM_ORDINARY)
		return ram_punch(ram, off, len);

	/*
	 * What was converted before an error stays converted. That is for the
	 * guest to deal with, as with any failed conversion.
	 */
	if (fallocate(ram->fd, 0, off, len))
		return -errno;

	/* The guest is off the shared half now: give its memory back. */
	if (madvise(ram->hva + off, len, MADV_DONTNEED))
		return -errno;
	return expose(ram, off, len, false);
}

int ram_to_private(struct ram *ram, __u64 gpa, __u64 len)
{
	off_t off = units_offset(ram, gpa, len);
	int ret;

	if (off < 0)
		return -EINVAL;
	pthread_mutex_lock(&ram->lock);
	ram->to_private++;
	ret = to_private(ram, off, len);
	pthread_mutex_unlock(&ram->lock);
	return ret;
}

int ram_to_shared(struct ram *ram, __u64 gpa, __u64 len)
{
	off_t off = units_offset(ram, gpa, len);
	int ret;

	if (off < 0)
		return -EINVAL;
	pthread_mutex_lock(&ram->lock);
	ram->to_shared++;
	ret = ram_punch(ram, off, len) ?: expose(ram, off, len, true);
	pthread_mutex_unlock(&ram->lock);
	return ret;
}

/* Call @fn for what is not shared in [page, end), a run at a time. */
static int for_each_unshared(struct ram *ram, __u64 page, __u64 end,
			     int (*fn)(struct ram *ram, off_t off, __u64 len))
{
	__u64 start;
	int ret;

	while (page < end) {
		for (start = page; page < end && !ram->shared[page]; page++)
			;
		ret = page > start ? fn(ram, start * PAGE_SIZE, (page - start) * PAGE_SIZE) : 0;
		if (ret)
			return ret;
		while (page < end && ram->shared[page])
			page++;
	}
	return 0;
}

static int allocate(struct ram *ram, off_t off, __u64 len)
{
	return fallocate(ram->fd, 0, off, len) ? -errno : 0;
}

int ram_populate(struct ram *ram, __u64 gpa)
{
	off_t off = ram_offset(ram, gpa, 1);
	__u64 page = off / HUGE_SIZE * HUGE_SIZE / PAGE_SIZE;
	int ret;

	if (ram->config.kind != RAM_LAZY || off < 0)
		return -EINVAL;

	/* In one call where nothing is shared, so that it can be a huge page. */
	pthread_mutex_lock(&ram->lock);
	ret = -EINVAL;
	if (!ram->shared[off / PAGE_SIZE])
		ret = for_each_unshared(ram, page, page + HUGE_SIZE / PAGE_SIZE, allocate);
	ram->populated += !ret;
	pthread_mutex_unlock(&ram->lock);
	return ret;
}

/* --- what is private --- */

void ram_for_each_private(struct ram *ram, void (*fn)(void *arg, __u64 gpa, __u64 len), void *arg)
{
	off_t data, hole = 0, start;

	/* An ordinary file says the same way what is allocated. */
	while ((data = lseek(ram->fd, hole, SEEK_DATA)) >= 0) {
		hole = lseek(ram->fd, data, SEEK_HOLE);
		if (hole < 0)
			break;
		/* What goes on behind the hole for devices is another range. */
		for (start = data; start < hole; start = data) {
			data = hole;
			if (start < (off_t)RAM_HOLE_START)
				data = MIN(hole, (off_t)RAM_HOLE_START);
			fn(arg, ram_gpa(start), data - start);
		}
	}
}

static void add_length(void *sum, __u64 gpa, __u64 len)
{
	(void)gpa;
	*(__u64 *)sum += len;
}

__u64 ram_private_bytes(struct ram *ram)
{
	__u64 sum = 0;

	if (ram->config.kind != RAM_ORDINARY)
		ram_for_each_private(ram, add_length, &sum);
	return sum;
}

/* --- set-up --- */

static int open_memfd(struct ram *ram)
{
	unsigned int flags = MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL;

	/* Ordinary RAM: executable, so that all the attempts can succeed. */
	if (ram->config.kind == RAM_ORDINARY)
		flags = MFD_ALLOW_SEALING | MFD_EXEC;
	else if (ram->config.born_sealed)
		flags = MFD_INACCESSIBLE;
	if (ram->config.hugetlb)
		flags |= MFD_HUGETLB | MFD_HUGE_2MB;

	ram->fd = memfd_create("guest-ram", MFD_CLOEXEC | flags);
	if (ram->fd < 0)
		return failed("memfd_create, flags %#x", flags);
	if (ftruncate(ram->fd, ram->config.size))
		return failed("guest RAM of %llu MiB", ram->config.size >> 20);
	if (!ram->config.hugetlb || ram->config.born_sealed)
		return 0;
	ram->window = mmap(NULL, ram->config.size, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_NORESERVE, ram->fd, 0);
	if (ram->window == MAP_FAILED) {
		ram->window = NULL;
		return failed("mapping %llu MiB of huge pages", ram->config.size >> 20);
	}
	return 0;
}

/* Aligned like guest and file, so that either half can have huge pages. */
static int map_shared_half(struct ram *ram)
{
	const bool ordinary = ram->config.kind == RAM_ORDINARY;
	const __u64 size = ram->config.size;
	int prot = ram->config.kind == RAM_LAZY ? PROT_NONE : PROT_READ | PROT_WRITE;
	int flags = ordinary ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	__u8 *raw, *hva;

	raw = mmap(NULL, size + HUGE_SIZE, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (raw == MAP_FAILED)
		return failed("reserving address space for %llu MiB of RAM", size >> 20);
	hva = (__u8 *)(((unsigned long)raw + HUGE_SIZE - 1) & -HUGE_SIZE);
	if (mmap(hva, size, prot, flags | MAP_FIXED, ordinary ? ram->fd : -1, 0) == MAP_FAILED)
		return failed("mapping the shared half");
	if (hva > raw)
		munmap(raw, hva - raw);
	munmap(hva + size, HUGE_SIZE - (hva - raw));
	ram->hva = hva;
	return 0;
}

int ram_create(struct ram *ram, const struct ram_config *config)
{
	*ram = (struct ram){ .config = *config, .fd = -1, .unit = PAGE_SIZE };
	pthread_mutex_init(&ram->lock, NULL);
	if (config->hugetlb)
		ram->unit = HUGE_SIZE;
	if (config->kind == RAM_GUEST_MEMFD)
		ram->config.born_sealed = true;
	else if (open_memfd(ram))
		return -1;
	ram->shared = calloc(config->size / PAGE_SIZE, 1);
	if (!ram->shared)
		return failed("calloc");
	return map_shared_half(ram);
}

int ram_set_guest_memfd(struct ram *ram, int vm)
{
	struct kvm_create_guest_memfd args = { .size = ram->config.size };

	ram->fd = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &args);
	return ram->fd < 0 ? failed("KVM_CREATE_GUEST_MEMFD") : 0;
}

void ram_share(struct ram *ram, __u64 gpa, __u64 len)
{
	__u64 first = ram_offset(ram, gpa, len) / ram->unit * ram->unit;
	__u64 end = (ram_offset(ram, gpa, len) + len + ram->unit - 1) / ram->unit * ram->unit;

	errno = -expose(ram, first, end - first, true);
	if (errno)
		abort();	/* a split of a mapping of ours: out of memory */
}

int ram_fill(struct ram *ram, __u64 gpa, const void *data, size_t len)
{
	off_t off = ram_offset(ram, gpa, len);
	ssize_t n;

	if (off < 0)
		return refused("no RAM at %#llx for %zu bytes", gpa, len);
	if (ram->config.born_sealed && ram->config.kind != RAM_ORDINARY) {
		ram_share(ram, gpa, len);
		memcpy(ram->hva + off, data, len);
		return 0;
	}
	if (ram->window) {
		/* An empty pool is to be an error, not a SIGBUS. */
		if (fallocate(ram->fd, FALLOC_FL_KEEP_SIZE, off, len))
			return failed("filling guest RAM");
		memcpy(ram->window + off, data, len);
		return 0;
	}
	/* Nothing may map the file or refer to its pages later, so: write, not mmap. */
	for (; len; len -= n, off += n, data = (const char *)data + n) {
		n = pwrite(ram->fd, data, len, off);
		if (n <= 0)
			return failed("filling guest RAM");
	}
	return 0;
}

static int seal(struct ram *ram)
{
	double start = now();

	if (ram->window)
		munmap(ram->window, ram->config.size);
	ram->window = NULL;
	if (ram->config.kind == RAM_ORDINARY || ram->config.born_sealed)
		return 0;
	if (fcntl(ram->fd, F_ADD_SEALS, F_SEAL_INACCESSIBLE))
		return failed("F_ADD_SEALS, F_SEAL_INACCESSIBLE");
	ram->seal_seconds = now() - start;
	return 0;
}

int ram_close(struct ram *ram)
{
	double start;
	int ret;

	if (seal(ram))
		return -1;
	if (ram->config.kind != RAM_PRIVATE)
		return 0;
	start = now();
	ret = for_each_unshared(ram, 0, ram->config.size / PAGE_SIZE, allocate);
	ram->alloc_seconds = now() - start;
	if (!ret)
		return 0;

	/*
	 * A memory cgroup that is full would have this process killed at its next
	 * page fault; that of a guest which asks for more later has to live with it.
	 */
	ram_punch(ram, 0, ram->config.size);
	errno = -ret;
	return failed("allocating %llu MiB of private RAM", ram->config.size >> 20);
}

void ram_destroy(struct ram *ram)
{
	if (ram->window)
		munmap(ram->window, ram->config.size);
	if (ram->hva)
		munmap(ram->hva, ram->config.size);
	if (ram->fd >= 0)
		close(ram->fd);
	free(ram->shared);
}
