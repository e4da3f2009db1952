// SPDX-License-Identifier: GPL-2.0
/*
 * What those pay who don't use inaccessible memfds: files of shmem and
 * hugetlbfs, ordinary slots, guest_memfd. The same program runs on the base and
 * on the patched kernel.
 *
 * Nothing that is measured sleeps: sleeping would count.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store.h"

#define TURNS	3
#define SIZE	(8ULL << 20)
#define TMPFS	"/tmp/bench-cost"

static char buffer[SZ_64K];

static void measure(const char *what, __u64 start)
{
	sample(what, "kernel", "instruction", ticks() - start);
}

/* Begin of what a call of measure() ends. */
#define start_of(what) \
	for (__u64 t_ = begin(), once_ = 1; once_; once_ = 0, measure(what, t_))

static void must(bool ok, const char *what)
{
	if (!ok)
		die("%s", what);
}

/* --- files --- */

static void transfer(int fd, bool write, size_t chunk, __u64 size)
{
	for (__u64 off = 0; off < size; off += chunk)
		must((write ? pwrite(fd, buffer, chunk, off) :
			      pread(fd, buffer, chunk, off)) == (ssize_t)chunk, "pread, pwrite");
}

static void touch_map(int fd, __u64 size, size_t step, int prot)
{
	volatile char *map = mmap(NULL, size, prot, MAP_SHARED, fd, 0);

	must(map != MAP_FAILED, "mmap");
	for (__u64 off = 0; off < size; off += step) {
		if (prot & PROT_WRITE)
			map[off] = 1;
		else
			(void)map[off];
	}
	munmap((void *)map, size);
}

static void seek_all(int fd)
{
	for (int i = 0; i < 256; i++) {
		must(lseek(fd, i * 2 * SZ_4K, SEEK_DATA) >= 0, "SEEK_DATA");
		must(lseek(fd, i * 2 * SZ_4K, SEEK_HOLE) >= 0, "SEEK_HOLE");
	}
}

/* A file of shmem, opened by @open_file, small pages and large. */
static void shmem_file(const char *kind, int (*open_file)(void))
{
	int null = open("/dev/null", O_WRONLY | O_CLOEXEC), pipes[2];
	int fd = open_file();

	must(null >= 0 && !pipe(pipes), "/dev/null, pipe");
	start_of(text("%s write, new", kind))
		transfer(fd, true, SZ_4K, SIZE);
	start_of(text("%s write", kind))
		transfer(fd, true, SZ_4K, SIZE);
	start_of(text("%s write 64K", kind))
		transfer(fd, true, SZ_64K, SIZE);
	start_of(text("%s read", kind))
		transfer(fd, false, SZ_4K, SIZE);
	start_of(text("%s read 64K", kind))
		transfer(fd, false, SZ_64K, SIZE);
	start_of(text("%s splice", kind)) {
		for (__u64 off = 0; off < SIZE; off += SZ_64K) {
			loff_t pos = off;

			for (__u64 done = 0; done < SZ_64K; ) {
				ssize_t n = splice(fd, &pos, pipes[1], NULL, SZ_64K - done, 0);

				must(n > 0 && splice(pipes[0], NULL, null, NULL, n, 0) == n,
				     "splice");
				done += n;
			}
		}
	}
	start_of(text("%s fault, read", kind))
		touch_map(fd, SIZE, SZ_4K, PROT_READ);
	start_of(text("%s fault", kind))
		touch_map(fd, SIZE, SZ_4K, PROT_READ | PROT_WRITE);
	start_of(text("%s punch", kind))
		for (__u64 off = 0; off < SIZE; off += 2 * SZ_4K)
			must(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, SZ_4K),
			     "punch");
	start_of(text("%s lseek", kind))
		seek_all(fd);
	start_of(text("%s fallocate", kind))
		for (__u64 off = 0; off < SIZE; off += 2 * SZ_4K)
			must(!fallocate(fd, 0, off, SZ_4K), "fallocate");
	start_of(text("%s truncate", kind))
		must(!ftruncate(fd, 0), "ftruncate");
	start_of(text("%s fallocate, all", kind))
		must(!fallocate(fd, 0, 0, SIZE), "fallocate");
	start_of(text("%s punch, all", kind))
		must(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE), "punch");
	start_of(text("%s fault, new", kind))
		touch_map(fd, SIZE, SZ_4K, PROT_READ | PROT_WRITE);
	start_of(text("%s close", kind))
		close(fd);
	close(null);
	close(pipes[0]);
	close(pipes[1]);
}

static int open_memfd(void)
{
	int fd = memfd_create("cost", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	must(fd >= 0 && !ftruncate(fd, SIZE), "memfd_create");
	return fd;
}

static int open_tmpfs(void)
{
	int fd = open(TMPFS "/file", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	must(fd >= 0 && !unlink(TMPFS "/file") && !ftruncate(fd, SIZE), TMPFS);
	return fd;
}

static void memfd_calls(void)
{
	int fd;

	start_of("memfd create, close")
		for (int i = 0; i < 256; i++) {
			fd = memfd_create("cost", MFD_CLOEXEC | MFD_ALLOW_SEALING);
			must(fd >= 0, "memfd_create");
			close(fd);
		}
	start_of("memfd seal")
		for (int i = 0; i < 256; i++) {
			fd = open_memfd();
			must(!fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) &&
			     !fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_WRITE) &&
			     fcntl(fd, F_GET_SEALS) == 0xe, "F_ADD_SEALS");
			close(fd);
		}
	start_of("memfd mmap")
		for (int i = 0; i < 256; i++) {
			void *p;

			fd = open_memfd();
			p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
			must(p != MAP_FAILED, "mmap");
			munmap(p, SIZE);
			close(fd);
		}
}

#define POOL	"/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
#define NR_HUGE	16

static void hugetlb_file(void)
{
	__u64 size = NR_HUGE * SZ_2M;
	int fd;

	write_text(POOL, text("%d", NR_HUGE));
	fd = memfd_create("cost", MFD_CLOEXEC | MFD_HUGETLB);
	must(fd >= 0 && !ftruncate(fd, size), "memfd_create(MFD_HUGETLB)");
	start_of("hugetlb fault, new")
		touch_map(fd, size, SZ_2M, PROT_READ | PROT_WRITE);
	/* A turn is short: no zeroing. */
	start_of("hugetlb fault")
		for (int i = 0; i < 64; i++)
			touch_map(fd, size, SZ_2M, PROT_READ | PROT_WRITE);
	start_of("hugetlb read")
		transfer(fd, false, SZ_64K, size);
	start_of("hugetlb punch")
		must(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, size), "punch");
	start_of("hugetlb fallocate")
		must(!fallocate(fd, 0, 0, size), "fallocate");
	start_of("hugetlb truncate")
		must(!ftruncate(fd, 0), "ftruncate");
	close(fd);
	write_text(POOL, "0");
}

/* --- KVM --- */

static void shared_slot(const char *name)
{
	__u64 size = 4 * SIZE;
	struct mem mem;
	struct vm vm;

	vm_create(&vm, 1);
	mem_create(&mem, store_by_name(name), &vm, size, 1, 1);
	start_of(text("slot touch, new, %s", name))
		mem_touch(&mem, 0, size);
	start_of(text("slot discard, %s", name))
		must(!madvise(mem.hva, size, MADV_DONTNEED), "MADV_DONTNEED");
	start_of(text("slot prefault, %s", name))
		vcpu_prefault(&vm.vcpus[0], MEM_GPA, size);
	start_of(text("slot enter and exit, %s", name))
		for (int i = 0; i < 512; i++)
			mem_touch(&mem, 0, SZ_4K);
	/* The host's page tables change under the guest: protected, and back. */
	start_of(text("slot zap and fault, %s", name))
		for (int i = 0; i < 64; i++) {
			must(!mprotect(mem.hva, SZ_2M, PROT_READ) &&
			     !mprotect(mem.hva, SZ_2M, PROT_READ | PROT_WRITE), "mprotect");
			mem_touch(&mem, i * SZ_64K, SZ_64K);
		}
	mem_destroy(&mem);
	vm_destroy(&vm);
}

static void guest_memfd(void)
{
	__u64 size = SIZE;
	struct mem mem;
	struct vm vm;

	vm_create(&vm, 1);
	mem_create(&mem, store_by_name("guest_memfd"), &vm, size, 1, 1);
	start_of("guest_memfd private")
		mem_to_private(&mem, 0, size);
	start_of("guest_memfd touch, new")
		mem_touch(&mem, 0, size);
	start_of("guest_memfd convert 4K")
		for (int i = 0; i < 256; i++) {
			mem_to_shared(&mem, i * 2 * SZ_4K, SZ_4K);
			mem_to_private(&mem, i * 2 * SZ_4K, SZ_4K);
		}
	start_of("guest_memfd convert 2M, touch")
		for (int i = 0; i < 4; i++) {
			mem_to_shared(&mem, i * SZ_2M, SZ_2M);
			mem_to_private(&mem, i * SZ_2M, SZ_2M);
			mem_touch(&mem, i * SZ_2M, SZ_2M);
		}
	start_of("guest_memfd shared, touch") {
		mem_to_shared(&mem, 0, size);
		mem_touch(&mem, 0, size);
	}
	mem_destroy(&mem);
	vm_destroy(&vm);
}

int main(void)
{
	check_ticks();
	must(!mkdir(TMPFS, 0700) || errno == EEXIST, TMPFS);
	for (int turn = 0; turn < TURNS; turn++) {
		shmem_file("memfd", open_memfd);
		shmem_file("tmpfs", open_tmpfs);
		memfd_calls();
		hugetlb_file();
		shared_slot("shared-THP");
		shared_slot("shared-4K");
		guest_memfd();
	}
	print_figures();
	return 0;
}
