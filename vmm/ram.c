// SPDX-License-Identifier: GPL-2.0
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm.h"

static bool in_ram(__u64 gpa, __u64 len)
{
	return len && gpa < RAM_SIZE && len <= RAM_SIZE - gpa &&
	       !((gpa | len) % PAGE_SIZE);
}

void *ram_shared_half(struct ram *ram, __u64 gpa, size_t len)
{
	if (gpa >= RAM_SIZE || len > RAM_SIZE - gpa)
		abort();
	return ram->hva + gpa;
}

static int punch(struct ram *ram, __u64 gpa, __u64 len)
{
	if (fallocate(ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, gpa, len))
		return -errno;
	return 0;
}

/* RAM_LAZY: only what is shared has a shared half. */
static int expose(struct ram *ram, __u64 gpa, __u64 len, bool shared)
{
	if (ram->kind != RAM_LAZY)
		return 0;
	if (mprotect(ram->hva + gpa, len, shared ? PROT_READ | PROT_WRITE : PROT_NONE))
		return -errno;
	memset(ram->shared + gpa / PAGE_SIZE, shared, len / PAGE_SIZE);
	return 0;
}

int ram_to_private(struct ram *ram, __u64 gpa, __u64 len)
{
	if (!in_ram(gpa, len))
		return -EINVAL;
	ram->to_private++;
	if (ram->kind == RAM_ORDINARY)
		return punch(ram, gpa, len);

	/*
	 * What was converted before an error stays converted. That is for the
	 * guest to deal with, as with any failed conversion.
	 */
	if (fallocate(ram->fd, 0, gpa, len))
		return -errno;

	/* The guest is off the shared half now: give its memory back. */
	if (madvise(ram->hva + gpa, len, MADV_DONTNEED))
		return -errno;
	return expose(ram, gpa, len, false);
}

int ram_to_shared(struct ram *ram, __u64 gpa, __u64 len)
{
	int ret;

	if (!in_ram(gpa, len))
		return -EINVAL;
	ram->to_shared++;
	ret = punch(ram, gpa, len);
	return ret ? ret : expose(ram, gpa, len, true);
}

int ram_populate(struct ram *ram, __u64 gpa)
{
	__u64 page = gpa / HUGE_SIZE * HUGE_SIZE / PAGE_SIZE, start;
	const __u64 end = page + HUGE_SIZE / PAGE_SIZE;

	if (ram->kind != RAM_LAZY || gpa >= RAM_SIZE || ram->shared[gpa / PAGE_SIZE])
		return -EINVAL;

	/* In one call where nothing is shared, so that it can be a huge page. */
	while (page < end) {
		for (start = page; page < end && !ram->shared[page]; page++)
			;
		if (page > start && fallocate(ram->fd, 0, start * PAGE_SIZE,
					      (page - start) * PAGE_SIZE))
			return -errno;
		while (page < end && ram->shared[page])
			page++;
	}
	ram->populated++;
	return 0;
}

__u64 ram_private_bytes(struct ram *ram)
{
	off_t data, hole = 0;
	__u64 sum = 0;

	while ((data = lseek(ram->fd, hole, SEEK_DATA)) >= 0) {
		hole = lseek(ram->fd, data, SEEK_HOLE);
		if (hole < 0)
			break;
		sum += hole - data;
	}
	return sum;
}

/* --- set-up --- */

/* A file of RAM_SIZE; its size can be set once where it is born sealed. */
static int open_file(unsigned int flags)
{
	int fd = memfd_create("guest-ram", MFD_CLOEXEC | flags);

	if (fd < 0)
		return -1;
	if (ftruncate(fd, RAM_SIZE)) {
		close(fd);
		return -1;
	}
	return fd;
}

static int fill_file(int fd, const void *image, size_t len)
{
	ssize_t ret = pwrite(fd, image, len, IMAGE_GPA);

	if (ret >= 0 && (size_t)ret != len)
		errno = EIO;
	return ret == (ssize_t)len ? 0 : -1;
}

/* Nothing may map the file or refer to its pages now, so: write, not mmap. */
static int open_and_seal(const void *image, size_t len)
{
	int fd = open_file(MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL), err;

	if (fd < 0)
		return -1;
	if (!fill_file(fd, image, len) &&
	    !fcntl(fd, F_ADD_SEALS, F_SEAL_INACCESSIBLE))
		return fd;
	err = errno;
	close(fd);
	errno = err;
	return -1;
}

static int open_private(struct ram *ram, const void *image, size_t len)
{
	if (ram->loader != LOAD_COPY) {
		ram->fd = open_and_seal(image, len);
		if (ram->fd >= 0) {
			ram->loader = LOAD_SEAL;
			return 0;
		}
		if (ram->loader == LOAD_SEAL)
			return failed("filling and sealing a memfd");
		printf("  fill-then-seal refused (%s), sealing at birth\n",
		       strerrorname_np(errno));
	}
	ram->loader = LOAD_COPY;
	ram->fd = open_file(MFD_INACCESSIBLE);
	return ram->fd < 0 ? failed("memfd_create(MFD_INACCESSIBLE), ftruncate") : 0;
}

static int open_ordinary(struct ram *ram, const void *image, size_t len)
{
	/* Sealable and executable, so that all the attempts can succeed. */
	ram->fd = open_file(MFD_ALLOW_SEALING | MFD_EXEC);
	if (ram->fd < 0)
		return failed("memfd_create, ftruncate");
	if (ram->loader == LOAD_COPY)
		return 0;
	ram->loader = LOAD_SEAL;
	return fill_file(ram->fd, image, len) ? failed("filling a memfd") : 0;
}

/* Aligned like guest and file, so that either half can have huge pages. */
static int map_shared_half(struct ram *ram)
{
	int prot = ram->kind == RAM_LAZY ? PROT_NONE : PROT_READ | PROT_WRITE;
	int flags = ram->kind == RAM_ORDINARY ? MAP_SHARED :
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	int fd = ram->kind == RAM_ORDINARY ? ram->fd : -1;
	__u8 *raw, *hva;

	raw = mmap(NULL, RAM_SIZE + HUGE_SIZE, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (raw == MAP_FAILED)
		return failed("reserving address space");
	hva = (__u8 *)(((unsigned long)raw + HUGE_SIZE - 1) & -HUGE_SIZE);
	if (mmap(hva, RAM_SIZE, prot, flags | MAP_FIXED, fd, 0) == MAP_FAILED)
		return failed("mapping the shared half");
	munmap(raw, hva - raw);
	munmap(hva + RAM_SIZE, HUGE_SIZE - (hva - raw));
	ram->hva = hva;
	return 0;
}

static int set_initial_state(struct ram *ram)
{
	__u64 end = ram->loader == LOAD_COPY ? STAGE_GPA : MAILBOX_GPA;

	ram->shared = calloc(RAM_SIZE / PAGE_SIZE, 1);
	if (!ram->shared)
		return failed("calloc");
	errno = -expose(ram, end, RAM_SIZE - end, true);
	if (errno)
		return failed("mprotect of the shared pages");
	if (ram->kind == RAM_PRIVATE && fallocate(ram->fd, 0, 0, end))
		return failed("fallocate of private RAM");
	return 0;
}

int ram_create(struct ram *ram, enum ram_kind kind, enum loader loader,
	       const void *image, size_t len)
{
	int ret;

	*ram = (struct ram){ .kind = kind, .loader = loader, .fd = -1 };
	if (len > STAGE_SIZE || len > PATTERN_GPA - IMAGE_GPA) {
		errno = EFBIG;
		return failed("guest image of %zu bytes", len);
	}

	if (kind == RAM_ORDINARY)
		ret = open_ordinary(ram, image, len);
	else
		ret = open_private(ram, image, len);
	if (ret || map_shared_half(ram) || set_initial_state(ram))
		return -1;

	ram->entry = IMAGE_GPA;
	if (ram->loader == LOAD_COPY) {
		ram->entry = STAGE_GPA;
		memcpy(ram_shared_half(ram, STAGE_GPA, len), image, len);
	}
	return 0;
}

void ram_destroy(struct ram *ram)
{
	if (ram->hva)
		munmap(ram->hva, RAM_SIZE);
	if (ram->fd >= 0)
		close(ram->fd);
	free(ram->shared);
}
