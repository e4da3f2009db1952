// SPDX-License-Identifier: GPL-2.0
/*
 * Memfds that are filled first and sealed then, with F_SEAL_INACCESSIBLE: what
 * becomes of the content, when the seal is refused, and that a refusal changes
 * nothing. The races of sealing are the subject of inaccessible_race_test.
 *
 * What is called a page here is one of the store: a huge page on hugetlbfs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <linux/aio_abi.h>
#include <linux/loop.h>
#include <linux/memfd.h>
#include <linux/udmabuf.h>
#include <linux/userfaultfd.h>

#include "../kselftest_harness.h"
#include "inaccessible_common.h"

#define NR	8
#define SIZE	(NR * UNIT)

#define SEALS	(F_SEAL_INACCESSIBLE | F_SEAL_EXEC)

FIXTURE(late)
{
	int fd;
	unsigned char model[NR];
	struct file_state before;
};

FIXTURE_SETUP(late)
{
	const char *lacking = late_seal_missing();

	if (lacking)
		SKIP(return, "%s", lacking);
	self->fd = mfd_filled(0, SIZE);
	ASSERT_LE(0, self->fd);
	memset(self->model, 1, NR);
	file_state_get(self->fd, &self->before);
	rnd_init();
}

FIXTURE_TEARDOWN(late)
{
	close(self->fd);
	knobs_restore();
}

/* No way in, and the rest as it was */
static void __is_sealed(struct __test_metadata *_metadata, int fd, const unsigned char *model,
			size_t nr, unsigned int seals)
{
	struct stat st;
	char byte = 'x';

	EXPECT_EQ(seals, fcntl(fd, F_GET_SEALS));
	EXPECT_EQ(-1, pread(fd, &byte, 1, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ('x', byte);
	EXPECT_EQ(-1, pwrite(fd, &byte, 1, 0));
	/* Which hugetlbfs never could do, and says so. */
	EXPECT_TRUE(errno == EPERM || (ON_HUGETLBFS && errno == EINVAL));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, UNIT, PROT_READ, MAP_PRIVATE, fd, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, UNIT, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	EXPECT_EQ(EPERM, errno);
	ASSERT_EQ(0, fstat(fd, &st));
	EXPECT_EQ(0, st.st_mode & 0111);
	EXPECT_EQ((off_t)(nr * UNIT), st.st_size);
	EXPECT_FALSE(model_differs(fd, model, nr));
}

#define is_sealed(fd, model, nr) __is_sealed(_metadata, fd, model, nr, SEALS)

/* Everything still works, and finds the old content. */
static void is_open(struct __test_metadata *_metadata, int fd, struct file_state *before)
{
	unsigned char buf[64];
	char *p;

	EXPECT_FALSE(file_state_changed(fd, before));
	file_state_get(fd, before);
	EXPECT_EQ((ssize_t)sizeof(buf), pread(fd, buf, sizeof(buf), 5 * UNIT));
	EXPECT_EQ(-1, fill_mismatch(buf, 5 * UNIT, sizeof(buf)));
	EXPECT_EQ(0, mfd_put(fd, buf, sizeof(buf), 5 * UNIT));
	p = mmap(NULL, UNIT, PROT_READ, MAP_SHARED, fd, 6 * UNIT);
	ASSERT_NE(MAP_FAILED, p);
	EXPECT_EQ(-1, fill_mismatch(p, 6 * UNIT, UNIT));
	munmap(p, UNIT);
	p = mmap(NULL, UNIT, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 6 * UNIT);
	ASSERT_NE(MAP_FAILED, p);
	EXPECT_EQ(-1, fill_mismatch(p, 6 * UNIT, UNIT));
	munmap(p, UNIT);
}

/* ---- what is sealed ---- */

TEST_F(late, content_is_out_of_reach)
{
	ASSERT_EQ(0, late_seal(self->fd));
	is_sealed(self->fd, self->model, NR);
	EXPECT_EQ(0, late_seal(self->fd));
	is_sealed(self->fd, self->model, NR);
	EXPECT_EQ(-EPERM, do_add_seals(self->fd, F_SEAL_WRITE));
	EXPECT_EQ(-EPERM, do_add_seals(self->fd, F_SEAL_FUTURE_WRITE));
	is_sealed(self->fd, self->model, NR);
	EXPECT_EQ(0, do_add_seals(self->fd, F_SEAL_SEAL));
	__is_sealed(_metadata, self->fd, self->model, NR, SEALS | F_SEAL_SEAL);
}

/* The pages become private as they are: the same frames, the same bytes. */
TEST_F(late, content_stays_in_place)
{
	uint64_t pfn[NR];
	unsigned char *buf = malloc(PAGE);
	unsigned int i;
	int kcore;
	char *p;

	kcore = kcore_open();
	if (kcore < 0)
		SKIP(return, "/proc/kcore (CONFIG_PROC_KCORE)");
	p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED | MAP_POPULATE, self->fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	for (i = 0; i < NR; i++)
		pfn[i] = pfn_of(p + i * UNIT);
	munmap(p, SIZE);
	if (!pfn[0])
		SKIP(return, "/proc/self/pagemap (CONFIG_PROC_PAGE_MONITOR)");
	if (kcore_read(kcore, pfn[0], buf) || fill_mismatch(buf, 0, PAGE) >= 0)
		SKIP(return, "the direct map in /proc/kcore");

	ASSERT_EQ(0, late_seal(self->fd));
	for (i = 0; i < NR; i++) {
		ASSERT_EQ(0, kcore_read(kcore, pfn[i], buf));
		EXPECT_EQ(-1, fill_mismatch(buf, i * UNIT, PAGE))
			TH_LOG("page %u", i);
	}
	/* Allocating what is there does nothing to it. */
	ASSERT_EQ(0, do_fallocate(self->fd, 0, 0, SIZE));
	ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, 3 * UNIT, UNIT));
	ASSERT_EQ(0, do_fallocate(self->fd, FALLOC_FL_KEEP_SIZE, 2 * UNIT, 3 * UNIT));
	/* Nor does an attempt to write. */
	memset(buf, 0, PAGE);
	EXPECT_EQ(-1, pwrite(self->fd, buf, PAGE, UNIT));
	for (i = 0; i < NR; i++) {
		if (i == 3)
			continue;
		ASSERT_EQ(0, kcore_read(kcore, pfn[i], buf));
		EXPECT_EQ(-1, fill_mismatch(buf, i * UNIT, PAGE))
			TH_LOG("page %u", i);
	}
	is_sealed(self->fd, self->model, NR);
	close(kcore);
}

TEST_F(late, holes_stay_holes)
{
	ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, UNIT, 2 * UNIT));
	ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, (NR - 1) * UNIT, UNIT));
	/* This one is allocated, though never written: private, then. */
	ASSERT_EQ(0, do_fallocate(self->fd, 0, UNIT, UNIT));
	self->model[2] = 0;
	self->model[NR - 1] = 0;
	ASSERT_EQ(0, late_seal(self->fd));
	is_sealed(self->fd, self->model, NR);
}

TEST_F(late, empty_file)
{
	int fd = mfd_ordinary(0, 0);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, late_seal(fd));
	EXPECT_EQ(SEALS, fcntl(fd, F_GET_SEALS));
	EXPECT_EQ(-EINVAL, do_ftruncate(fd, 1));
	EXPECT_EQ(0, do_ftruncate(fd, SIZE));
	EXPECT_EQ(-EPERM, do_ftruncate(fd, 2 * SIZE));
	EXPECT_EQ(0, do_fallocate(fd, 0, 0, SIZE));
	is_sealed(fd, self->model, NR);
	close(fd);
}

/* From now on the file is like one that was born sealed. */
TEST_F(late, rules_after)
{
	ASSERT_EQ(0, late_seal(self->fd));
	EXPECT_EQ(-EPERM, do_ftruncate(self->fd, 0));
	EXPECT_EQ(-EPERM, do_ftruncate(self->fd, SIZE - UNIT));
	EXPECT_EQ(-EPERM, do_ftruncate(self->fd, SIZE + UNIT));
	EXPECT_EQ(0, do_ftruncate(self->fd, SIZE));
	EXPECT_EQ(-EPERM, mfd_reopen(self->fd, O_RDWR | O_TRUNC));
	EXPECT_EQ(-EINVAL, do_fallocate(self->fd, PUNCH, 0, 1));
	EXPECT_EQ(-EINVAL, do_fallocate(self->fd, PUNCH, UNIT / 2, UNIT));
	EXPECT_EQ(-EINVAL, do_fallocate(self->fd, PUNCH, SIZE, UNIT));
	EXPECT_EQ(-EINVAL, do_fallocate(self->fd, 0, SIZE - UNIT, 2 * UNIT));
	EXPECT_EQ(-EINVAL, do_fallocate(self->fd, FALLOC_FL_KEEP_SIZE, SIZE, UNIT));
	EXPECT_EQ(-EOPNOTSUPP, do_fallocate(self->fd, FALLOC_FL_ZERO_RANGE, 0, UNIT));
	EXPECT_EQ(-1, fchmod(self->fd, 0700));
	EXPECT_EQ(EPERM, errno);
	is_sealed(self->fd, self->model, NR);

	EXPECT_EQ(0, do_fallocate(self->fd, PUNCH, 2 * UNIT, 3 * UNIT));
	model_set(self->model, 2, 3, 0);
	is_sealed(self->fd, self->model, NR);
	EXPECT_EQ(0, do_fallocate(self->fd, 0, 3 * UNIT, UNIT));
	self->model[3] = 1;
	is_sealed(self->fd, self->model, NR);
	EXPECT_EQ(0, do_fallocate(self->fd, PUNCH, 0, SIZE));
	memset(self->model, 0, NR);
	is_sealed(self->fd, self->model, NR);
}

TEST_F(late, descriptors_from_before)
{
	int ro = mfd_reopen(self->fd, O_RDONLY), rw = mfd_reopen(self->fd, O_RDWR);
	char byte = 'x';

	ASSERT_LE(0, ro);
	ASSERT_LE(0, rw);
	ASSERT_EQ(0, late_seal(self->fd));
	EXPECT_EQ(-1, pread(ro, &byte, 1, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, UNIT, PROT_READ, MAP_PRIVATE, ro, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(-EBADF, do_fallocate(ro, PUNCH, 0, UNIT));
	is_sealed(rw, self->model, NR);
	is_sealed(self->fd, self->model, NR);
	close(ro);
	close(rw);
}

/* A loop device was there first. Its cache may know the old bytes, not more. */
TEST_F(late, loop_device_from_before)
{
	unsigned char *buf = aligned_alloc(PAGE, PAGE);
	char dev[32];
	int loop, direct, backing = dup(self->fd);

	/* Files that can't be written to make a read-only device. */
	if (ON_HUGETLBFS)
		dup2(mfd_reopen(self->fd, O_RDONLY), backing);
	loop = loop_attach(backing, dev, sizeof(dev));
	close(backing);
	if (loop < 0)
		SKIP(return, "loop devices (CONFIG_BLK_DEV_LOOP)");
	direct = open(dev, (ON_HUGETLBFS ? O_RDONLY : O_RDWR) | O_DIRECT);
	ASSERT_LE(0, direct);
	ASSERT_EQ((ssize_t)PAGE, pread(direct, buf, PAGE, UNIT));
	EXPECT_EQ(-1, fill_mismatch(buf, UNIT, PAGE));
	ASSERT_EQ(0, late_seal(self->fd));
	memset(buf, 0xaa, PAGE);
	EXPECT_EQ(-1, pread(direct, buf, PAGE, UNIT));
	EXPECT_EQ(EIO, errno);
	EXPECT_EQ(0xaa, buf[0]);
	EXPECT_EQ(-1, pwrite(direct, buf, PAGE, UNIT));
	EXPECT_EQ(ON_HUGETLBFS ? EBADF : EIO, errno);
	is_sealed(self->fd, self->model, NR);
	close(direct);
	ioctl(loop, LOOP_CLR_FD, 0);
	close(loop);
	free(buf);
}

/* Files that were born sealed take the seal again, if seals at all. */
TEST_F(late, born_sealed)
{
	struct file_state st;
	int fd;

	fd = mfd_sealed(MFD_ALLOW_SEALING, SIZE);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, do_fallocate(fd, 0, 0, SIZE));
	EXPECT_EQ(0, late_seal(fd));
	is_sealed(fd, self->model, NR);
	EXPECT_EQ(-EPERM, do_add_seals(fd, F_SEAL_INACCESSIBLE | F_SEAL_WRITE));
	is_sealed(fd, self->model, NR);
	close(fd);

	fd = mfd_sealed(0, SIZE);
	ASSERT_LE(0, fd);
	file_state_get(fd, &st);
	EXPECT_EQ(-EPERM, late_seal(fd));
	EXPECT_FALSE(file_state_changed(fd, &st));
	close(fd);
}

/* ---- what else is in the file ---- */

TEST_F(late, pages_past_the_size)
{
	ASSERT_EQ(0, do_fallocate(self->fd, FALLOC_FL_KEEP_SIZE, SIZE, 20 * UNIT));
	ASSERT_EQ(NR + 20, blocks_pages(self->fd));
	ASSERT_EQ(0, late_seal(self->fd));
	is_sealed(self->fd, self->model, NR);
	ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, 0, SIZE));
	EXPECT_EQ(0, blocks_pages(self->fd));
}

TEST_F(late, huge_page_across_the_size)
{
	int fd;

	if (ON_HUGETLBFS)
		SKIP(return, OF_SHMEM);
	if (knob_set(SHMEM_ENABLED, "always"))
		SKIP(return, SHMEM_ENABLED " (CONFIG_TRANSPARENT_HUGEPAGE)");
	fd = mfd_ordinary(0, SIZE);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, do_fallocate(fd, 0, 0, SIZE));
	/* 6.12 rounds up; should a later kernel not, there's nothing to see. */
	TH_LOG("%ld pages before sealing", blocks_pages(fd));
	ASSERT_EQ(0, late_seal(fd));
	is_sealed(fd, self->model, NR);
	ASSERT_EQ(0, do_fallocate(fd, PUNCH, PAGE, 2 * PAGE));
	model_set(self->model, 1, 2, 0);
	is_sealed(fd, self->model, NR);
	ASSERT_EQ(0, do_fallocate(fd, PUNCH, 0, SIZE));
	EXPECT_EQ(0, blocks_pages(fd));
	close(fd);
}

/* Pages that only reads have brought in are clean, and nobody's to drop now. */
TEST_F(late, clean_pages)
{
	unsigned int i;
	int fd;
	char *p;

	fd = mfd_ordinary(0, SIZE);
	ASSERT_LE(0, fd);
	p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	munmap(p, SIZE);
	ASSERT_EQ(NR, blocks_pages(fd));
	ASSERT_EQ(0, late_seal(fd));
	for (i = 0; i < 3; i++)
		if (write_file("/proc/sys/vm/drop_caches", "3"))
			SKIP(return, "/proc/sys/vm/drop_caches");
	is_sealed(fd, self->model, NR);
	close(fd);
}

/* The frame behind a page of the file, as long as it can be mapped */
static uint64_t pfn_of_page(int fd, size_t page)
{
	char *p = mmap(NULL, UNIT, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, page * UNIT);
	uint64_t pfn;

	if (p == MAP_FAILED)
		return 0;
	pfn = pfn_of(p);
	munmap(p, UNIT);
	return pfn;
}

#define OFFLINE "/sys/devices/system/memory/"

/* Taking a frame out of use moves the page, or leaves it: it does not drop it. */
TEST_F(late, soft_offline)
{
	unsigned int i;
	uint64_t pfn;
	int fd;

	/* Clean pages, for those are easily dropped */
	fd = mfd_ordinary(0, SIZE);
	ASSERT_LE(0, fd);
	pfn = pfn_of_page(fd, 3);
	if (!pfn || access(OFFLINE "soft_offline_page", W_OK))
		SKIP(return, "soft offline (CONFIG_MEMORY_FAILURE, CONFIG_PROC_PAGE_MONITOR)");
	for (i = 0; i < NR; i++)
		ASSERT_NE(0, pfn_of_page(fd, i));
	ASSERT_EQ(0, late_seal(fd));
	write_file(OFFLINE "soft_offline_page", "%#llx", (unsigned long long)(pfn * PAGE));
	is_sealed(fd, self->model, NR);
	ASSERT_EQ(0, do_fallocate(fd, PUNCH, 0, SIZE));
	EXPECT_EQ(0, blocks_pages(fd));
	close(fd);
}

/*
 * How long to wait for what happens next to somebody else: about as often before it
 * as after it, so at times in between.
 */
static void aim(unsigned int *us, bool later)
{
	if (later)
		*us += *us / 4 + 10;
	else
		*us -= *us / 4;
}

static int hard_offline(uint64_t pfn)
{
	return write_file(OFFLINE "hard_offline_page", "%#llx", (unsigned long long)(pfn * PAGE));
}

/* A page with an error stays what it is, until it is punched. */
TEST_F(late, memory_failure)
{
	uint64_t pfn = pfn_of_page(self->fd, 3);

	if (!pfn || access(OFFLINE "hard_offline_page", W_OK))
		SKIP(return, "memory failure (CONFIG_MEMORY_FAILURE, CONFIG_PROC_PAGE_MONITOR)");
	ASSERT_EQ(0, late_seal(self->fd));
	ASSERT_EQ(0, hard_offline(pfn));
	is_sealed(self->fd, self->model, NR);
	EXPECT_EQ(0, do_fallocate(self->fd, 0, 0, SIZE));
	is_sealed(self->fd, self->model, NR);
	EXPECT_EQ(0, do_fallocate(self->fd, PUNCH, 3 * UNIT, UNIT));
	self->model[3] = 0;
	is_sealed(self->fd, self->model, NR);
	EXPECT_EQ(0, do_fallocate(self->fd, 0, 3 * UNIT, UNIT));
	self->model[3] = 1;
	is_sealed(self->fd, self->model, NR);
}

/*
 * It has the error before, after, or while it is sealed: with it there is one who
 * refers to the page for good.
 */
TEST_F(late, memory_failure_meanwhile)
{
	unsigned int sealed = 0, refused = 0, us = 1000, round;
	long failed = meminfo_kb("HardwareCorrupted");
	uint64_t pfn;
	pid_t pid;
	int fd, r;

	if (ON_HUGETLBFS)
		SKIP(return, OF_SHMEM);
	if (!pfn_of_page(self->fd, 3) || access(OFFLINE "hard_offline_page", W_OK))
		SKIP(return, "memory failure (CONFIG_MEMORY_FAILURE, CONFIG_PROC_PAGE_MONITOR)");
	for (round = 0; round < 60; round++) {
		fd = mfd_filled(0, SIZE);
		ASSERT_LE(0, fd);
		pfn = pfn_of_page(fd, 3);
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			hard_offline(pfn);
			_exit(0);
		}
		usleep(us / 2 + rnd(us));
		r = late_seal(fd);
		ASSERT_EQ(pid, waitpid(pid, NULL, 0));
		if (r) {
			EXPECT_EQ(-EBUSY, r);
			EXPECT_EQ(0, fcntl(fd, F_GET_SEALS));
			refused++;
		} else {
			is_sealed(fd, self->model, NR);
			EXPECT_EQ(0, do_fallocate(fd, PUNCH, 3 * UNIT, UNIT));
			EXPECT_EQ(0, do_fallocate(fd, 0, 3 * UNIT, UNIT));
			is_sealed(fd, self->model, NR);
			sealed++;
		}
		aim(&us, !r);
		close(fd);
	}
	TH_LOG("%u times sealed, %u times refused", sealed, refused);
	EXPECT_LT(0, sealed);
	EXPECT_LT(0, refused);
	EXPECT_EQ(failed + round * (long)PAGE / 1024, meminfo_kb("HardwareCorrupted"));
}

TEST_F(late, memory_failure_in_huge_page)
{
	const unsigned int nr = 512;
	unsigned char *model = malloc(nr);
	uint64_t pfn;
	long failed;
	int fd;

	if (ON_HUGETLBFS)
		SKIP(return, OF_SHMEM);
	if (knob_set(SHMEM_ENABLED, "always"))
		SKIP(return, SHMEM_ENABLED " (CONFIG_TRANSPARENT_HUGEPAGE)");
	fd = mfd_filled(0, nr * PAGE);
	ASSERT_LE(0, fd);
	pfn = pfn_of_page(fd, 100);
	if (!pfn || access(OFFLINE "hard_offline_page", W_OK))
		SKIP(return, "memory failure (CONFIG_MEMORY_FAILURE, CONFIG_PROC_PAGE_MONITOR)");
	memset(model, 1, nr);
	ASSERT_EQ(0, late_seal(fd));
	/* Which may be the last word, if the huge page can't be split. */
	failed = meminfo_kb("HardwareCorrupted");
	hard_offline(pfn);
	EXPECT_LT(failed, meminfo_kb("HardwareCorrupted"));
	is_sealed(fd, model, nr);
	EXPECT_EQ(0, do_fallocate(fd, PUNCH, 100 * PAGE, PAGE));
	model[100] = 0;
	is_sealed(fd, model, nr);
	EXPECT_EQ(0, do_fallocate(fd, PUNCH, 0, nr * PAGE));
	EXPECT_EQ(0, blocks_pages(fd));
	close(fd);
	free(model);
}

TEST_F(late, swapped_out_pages)
{
	const unsigned int nr = 256;
	unsigned char *model = malloc(nr);
	struct swap_space sw;
	const char *lacking;
	struct memcg cg;
	int *fds, status, i;
	pid_t pid;

	if (ON_HUGETLBFS)
		SKIP(return, OF_SHMEM);
	lacking = memcg_create(&cg);
	if (!lacking)
		lacking = swap_on(&sw, 16 << 20);
	if (lacking) {
		memcg_destroy(&cg);
		SKIP(return, "%s", lacking);
	}
	/* The child fills the file, and so is the one who is charged for it. */
	fds = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	close(self->fd);
	self->fd = mfd_ordinary(0, nr * PAGE);
	ASSERT_LE(0, self->fd);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		unsigned char *buf = malloc(nr * PAGE);

		fill(buf, 0, nr * PAGE);
		if (memcg_enter(&cg))
			_exit(2);
		_exit(pwrite(self->fd, buf, nr * PAGE, 0) == (ssize_t)(nr * PAGE) ? 0 : 1);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);
	munmap(fds, PAGE);
	for (i = 0; i < 20 && memcg_stat(&cg, "memory.swap.current", NULL) < (long)(nr * PAGE / 2);
	     i++)
		memcg_write(&cg, "memory.reclaim", "%lu", nr * PAGE);
	ASSERT_LE((long)(nr * PAGE / 2), memcg_stat(&cg, "memory.swap.current", NULL));

	ASSERT_EQ(0, late_seal(self->fd));
	memset(model, 1, nr);
	is_sealed(self->fd, model, nr);
	ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, 3 * PAGE, 50 * PAGE));
	model_set(model, 3, 50, 0);
	is_sealed(self->fd, model, nr);
	/* Whatever is in swap yet comes back, and is no more accessible. */
	swap_off(&sw);
	is_sealed(self->fd, model, nr);
	ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, 0, nr * PAGE));
	EXPECT_EQ(0, blocks_pages(self->fd));
	memcg_destroy(&cg);
	free(model);
}

TEST_F(late, conversions_in_huge_pages)
{
	const unsigned int nr = 1024;
	unsigned char *model = malloc(nr);
	unsigned int round;
	int fd;

	if (ON_HUGETLBFS)
		SKIP(return, OF_SHMEM);
	if (knob_set(SHMEM_ENABLED, "always"))
		SKIP(return, SHMEM_ENABLED " (CONFIG_TRANSPARENT_HUGEPAGE)");
	fd = mfd_filled(0, nr * PAGE);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, late_seal(fd));
	memset(model, 1, nr);
	is_sealed(fd, model, nr);
	for (round = 0; round < 60 * scale(); round++) {
		unsigned int from = rnd(nr), len = 1 + rnd(rnd(4) ? 20 : nr - from);
		bool private = rnd(2);

		if (from + len > nr)
			len = nr - from;
		ASSERT_EQ(0, do_fallocate(fd, private ? 0 : PUNCH, from * PAGE, len * PAGE));
		model_set(model, from, len, private);
		ASSERT_FALSE(model_differs(fd, model, nr));
	}
	is_sealed(fd, model, nr);
	close(fd);
	free(model);
}

/* ---- seals, modes and sizes ---- */

TEST_F(late, together_with_other_seals)
{
	const unsigned int more = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

	ASSERT_EQ(0, do_add_seals(self->fd, F_SEAL_INACCESSIBLE | more));
	__is_sealed(_metadata, self->fd, self->model, NR, SEALS | more);
	EXPECT_EQ(-EPERM, do_add_seals(self->fd, 0));
	EXPECT_EQ(0, do_fallocate(self->fd, PUNCH, 0, UNIT));
}

TEST_F(late, after_other_seals)
{
	ASSERT_EQ(0, do_add_seals(self->fd, F_SEAL_SHRINK | F_SEAL_GROW));
	ASSERT_EQ(0, late_seal(self->fd));
	__is_sealed(_metadata, self->fd, self->model, NR, SEALS | F_SEAL_SHRINK | F_SEAL_GROW);
}

TEST_F(late, executable_file)
{
	int fd = mfd_ordinary(MFD_EXEC, UNIT);
	struct stat st;
	char *p;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, fstat(fd, &st));
	ASSERT_EQ(0111, st.st_mode & 0111);
	/* A refusal leaves the bits alone. */
	p = mmap(NULL, UNIT, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	EXPECT_EQ(-EBUSY, late_seal(fd));
	munmap(p, UNIT);
	ASSERT_EQ(0, fstat(fd, &st));
	EXPECT_EQ(0111, st.st_mode & 0111);
	EXPECT_EQ(0, fcntl(fd, F_GET_SEALS));

	/* F_SEAL_EXEC comes without the write seals that it brings elsewhere. */
	EXPECT_EQ(0, late_seal(fd));
	EXPECT_EQ(SEALS, fcntl(fd, F_GET_SEALS));
	ASSERT_EQ(0, fstat(fd, &st));
	EXPECT_EQ(S_IFREG | 0666, st.st_mode);
	EXPECT_EQ(-1, fchmod(fd, 0777));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(0, do_fallocate(fd, PUNCH, 0, UNIT));
	close(fd);
}

/* hugetlbfs has such sizes only from fallocate(), which grows the file. */
static int set_odd_size(int fd, off_t size)
{
	return ON_HUGETLBFS ? do_fallocate(fd, 0, 0, size) : do_ftruncate(fd, size);
}

TEST_F(late, odd_size)
{
	static const off_t odd[] = { 1, 511, 512, -1, -512, -4095 };
	struct file_state st;
	unsigned int i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(odd); i++) {
		off_t size = SIZE + odd[i] + (ON_HUGETLBFS && odd[i] < 0 ? UNIT : 0);

		fd = mfd_filled(0, SIZE);
		ASSERT_LE(0, fd);
		ASSERT_EQ(0, set_odd_size(fd, size));
		ASSERT_EQ(size, file_size(fd));
		file_state_get(fd, &st);
		EXPECT_EQ(-EINVAL, late_seal(fd))
			TH_LOG("size %lld", (long long)size);
		EXPECT_EQ(-EINVAL, do_add_seals(fd, F_SEAL_INACCESSIBLE | F_SEAL_SHRINK));
		is_open(_metadata, fd, &st);
		ASSERT_EQ(0, do_ftruncate(fd, SIZE));
		EXPECT_EQ(0, late_seal(fd));
		close(fd);
	}
}

TEST_F(late, write_sealed)
{
	static const unsigned int seals[] = {
		F_SEAL_WRITE, F_SEAL_FUTURE_WRITE, F_SEAL_WRITE | F_SEAL_FUTURE_WRITE,
	};
	unsigned int i;
	char byte;
	int fd;

	for (i = 0; i < ARRAY_SIZE(seals); i++) {
		/* In one call: neither is added, not even for a moment. */
		EXPECT_EQ(-EPERM, do_add_seals(self->fd, F_SEAL_INACCESSIBLE | seals[i]));
		is_open(_metadata, self->fd, &self->before);

		fd = mfd_filled(0, SIZE);
		ASSERT_LE(0, fd);
		ASSERT_EQ(0, do_add_seals(fd, seals[i]));
		EXPECT_EQ(-EPERM, late_seal(fd));
		EXPECT_EQ(seals[i], fcntl(fd, F_GET_SEALS));
		EXPECT_EQ(1, pread(fd, &byte, 1, 0));
		EXPECT_NE(MAP_FAILED, mmap(NULL, UNIT, PROT_READ, MAP_PRIVATE, fd, 0));
		close(fd);
	}
}

TEST_F(late, sealed_against_seals)
{
	struct file_state st;
	int fd;

	ASSERT_EQ(0, do_add_seals(self->fd, F_SEAL_SEAL));
	file_state_get(self->fd, &self->before);
	EXPECT_EQ(-EPERM, late_seal(self->fd));
	is_open(_metadata, self->fd, &self->before);

	/* Without MFD_ALLOW_SEALING that is how a memfd is born. */
	fd = mfd_create(store.flags);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, do_ftruncate(fd, UNIT));
	file_state_get(fd, &st);
	EXPECT_EQ(-EPERM, late_seal(fd));
	EXPECT_FALSE(file_state_changed(fd, &st));
	close(fd);
}

TEST_F(late, read_only_descriptor)
{
	int ro = mfd_reopen(self->fd, O_RDONLY);

	ASSERT_LE(0, ro);
	EXPECT_EQ(-EPERM, late_seal(ro));
	is_open(_metadata, self->fd, &self->before);
	close(ro);
	EXPECT_EQ(0, late_seal(self->fd));
}

TEST_F(late, other_files)
{
	char name[] = "/tmp/inaccessible.XXXXXX";
	int fd, p[2];

	ASSERT_EQ(0, pipe(p));
	EXPECT_EQ(-EINVAL, late_seal(p[1]));
	close(p[0]);
	close(p[1]);

	mkdir("/tmp", 01777);
	fd = mkstemp(name);
	ASSERT_LE(0, fd);
	unlink(name);
	EXPECT_GT(0, late_seal(fd));
	EXPECT_EQ(1, write(fd, "x", 1));
	close(fd);
	EXPECT_EQ(-EBADF, late_seal(fd));
}

/* ---- in use ---- */

/* Refused, and nothing has changed; let go of, and it works. */
static void is_busy(struct __test_metadata *_metadata, int fd, struct file_state *before)
{
	EXPECT_EQ(-EBUSY, late_seal(fd));
	is_open(_metadata, fd, before);
	EXPECT_EQ(-EBUSY, do_add_seals(fd, F_SEAL_INACCESSIBLE | F_SEAL_SHRINK | F_SEAL_SEAL));
	is_open(_metadata, fd, before);
}

FIXTURE(mapped)
{
	int fd;
	unsigned char model[NR];
	struct file_state before;
};

struct mapping {
	int prot, flags;
	bool touch, write;
};

FIXTURE_VARIANT(mapped)
{
	struct mapping m;
};

FIXTURE_VARIANT_ADD(mapped, shared)
{
	.m = { .prot = PROT_READ | PROT_WRITE, .flags = MAP_SHARED, .touch = true, .write = true },
};

FIXTURE_VARIANT_ADD(mapped, shared_untouched)
{
	.m = { .prot = PROT_READ | PROT_WRITE, .flags = MAP_SHARED },
};

FIXTURE_VARIANT_ADD(mapped, shared_read_only)
{
	.m = { .prot = PROT_READ, .flags = MAP_SHARED, .touch = true },
};

FIXTURE_VARIANT_ADD(mapped, shared_none)
{
	.m = { .prot = PROT_NONE, .flags = MAP_SHARED },
};

FIXTURE_VARIANT_ADD(mapped, shared_exec)
{
	.m = { .prot = PROT_READ | PROT_EXEC, .flags = MAP_SHARED, .touch = true },
};

FIXTURE_VARIANT_ADD(mapped, shared_locked)
{
	.m = { .prot = PROT_READ, .flags = MAP_SHARED | MAP_LOCKED },
};

FIXTURE_VARIANT_ADD(mapped, private)
{
	.m = { .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE, .touch = true },
};

FIXTURE_VARIANT_ADD(mapped, private_untouched)
{
	.m = { .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE },
};

/* All its pages are copies. A fault after MADV_DONTNEED gets at the file. */
FIXTURE_VARIANT_ADD(mapped, private_copied)
{
	.m = { .prot = PROT_READ | PROT_WRITE, .flags = MAP_PRIVATE, .touch = true, .write = true },
};

FIXTURE_VARIANT_ADD(mapped, private_none)
{
	.m = { .prot = PROT_NONE, .flags = MAP_PRIVATE },
};

FIXTURE_VARIANT_ADD(mapped, private_populated)
{
	.m = { .prot = PROT_READ, .flags = MAP_PRIVATE | MAP_POPULATE },
};

FIXTURE_SETUP(mapped)
{
	const char *lacking = late_seal_missing();

	if (lacking)
		SKIP(return, "%s", lacking);
	self->fd = mfd_filled(0, SIZE);
	ASSERT_LE(0, self->fd);
	memset(self->model, 1, NR);
	file_state_get(self->fd, &self->before);
}

FIXTURE_TEARDOWN(mapped)
{
	close(self->fd);
}

/* Map it as the variant says; the pages of it that are touched are sound. */
static char *map_variant(struct __test_metadata *_metadata, int fd,
			 const struct mapping *m, size_t page, size_t nr)
{
	char *p = mmap(NULL, nr * UNIT, m->prot, m->flags, fd, page * UNIT);
	size_t i;

	ASSERT_NE(MAP_FAILED, p);
	for (i = 0; i < nr && m->touch; i++) {
		EXPECT_EQ(-1, fill_mismatch(p + i * UNIT, (page + i) * UNIT, 8));
		if (m->write)
			p[i * UNIT] = fill_byte((page + i) * UNIT);
	}
	return p;
}

TEST_F(mapped, here)
{
	char *p = map_variant(_metadata, self->fd, &variant->m, 0, NR);

	is_busy(_metadata, self->fd, &self->before);
	/* Faults of the mapping work, also those that come only now. */
	ASSERT_EQ(0, mprotect(p, SIZE, PROT_READ));
	EXPECT_EQ(-1, fill_mismatch(p, 0, SIZE));
	/* Copies are dropped, and the pages of the file come back. */
	if (!(variant->m.flags & MAP_LOCKED))
		ASSERT_EQ(0, madvise(p, SIZE, MADV_DONTNEED));
	EXPECT_EQ(-1, fill_mismatch(p, 0, SIZE));
	is_busy(_metadata, self->fd, &self->before);
	/* The last page of it is one too many. */
	munmap(p, (NR - 1) * UNIT);
	is_busy(_metadata, self->fd, &self->before);
	munmap(p + (NR - 1) * UNIT, UNIT);
	EXPECT_EQ(0, late_seal(self->fd));
	is_sealed(self->fd, self->model, NR);
}

TEST_F(mapped, in_another_process)
{
	int p[2], status;
	pid_t pid;
	char *map;

	ASSERT_EQ(0, pipe(p));
	map = map_variant(_metadata, self->fd, &variant->m, 2, 3);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		char byte;

		/* Until the parent closes its end, and lets go of the mapping. */
		close(p[1]);
		_exit(read(p[0], &byte, 1));
	}
	munmap(map, 3 * UNIT);
	close(p[0]);
	is_busy(_metadata, self->fd, &self->before);
	close(p[1]);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(0, late_seal(self->fd));
	is_sealed(self->fd, self->model, NR);
}

TEST_F(mapped, without_descriptor)
{
	char *p = map_variant(_metadata, self->fd, &variant->m, 0, NR);
	int fd = mfd_reopen(self->fd, O_RDWR);

	ASSERT_LE(0, fd);
	/* The mapping stays, whatever descriptor it was made with. */
	close(self->fd);
	self->fd = fd;
	is_busy(_metadata, self->fd, &self->before);
	p = mremap(p, SIZE, 2 * SIZE, MREMAP_MAYMOVE);
	if (p != MAP_FAILED) {
		is_busy(_metadata, self->fd, &self->before);
		munmap(p, 2 * SIZE);
		EXPECT_EQ(0, late_seal(self->fd));
	}
}

/* References to pages that no mapping shows: the mapping is gone. */
static char *map_for_pin(struct __test_metadata *_metadata, int fd)
{
	char *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	ASSERT_NE(MAP_FAILED, p);
	return p;
}

TEST_F(late, pinned_by_vmsplice)
{
	struct iovec iov = { NULL, PAGE };
	char *map = map_for_pin(_metadata, self->fd), buf[64];
	int p[2];

	ASSERT_EQ(0, pipe(p));
	iov.iov_base = map + 2 * UNIT;
	ASSERT_EQ((ssize_t)PAGE, vmsplice(p[1], &iov, 1, 0));
	munmap(map, SIZE);
	is_busy(_metadata, self->fd, &self->before);
	EXPECT_EQ((ssize_t)sizeof(buf), read(p[0], buf, sizeof(buf)));
	EXPECT_EQ(-1, fill_mismatch(buf, 2 * UNIT, sizeof(buf)));
	/* One byte in the pipe keeps the page. */
	is_busy(_metadata, self->fd, &self->before);
	close(p[0]);
	close(p[1]);
	EXPECT_EQ(0, late_seal(self->fd));
	is_sealed(self->fd, self->model, NR);
}

TEST_F(late, pinned_by_splice)
{
	off_t off = (NR - 1) * PAGE;
	int p[2];

	if (ON_HUGETLBFS)
		SKIP(return, OF_SHMEM);
	ASSERT_EQ(0, pipe(p));
	ASSERT_EQ(1, splice(self->fd, &off, p[1], NULL, 1, 0));
	is_busy(_metadata, self->fd, &self->before);
	close(p[0]);
	close(p[1]);
	EXPECT_EQ(0, late_seal(self->fd));
	is_sealed(self->fd, self->model, NR);
}

TEST_F(late, pinned_by_sendfile)
{
	off_t off = 0;
	int sv[2];

	if (ON_HUGETLBFS)
		SKIP(return, OF_SHMEM);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, sv))
		SKIP(return, "sockets (CONFIG_UNIX)");
	ASSERT_EQ((ssize_t)PAGE, sendfile(sv[0], self->fd, &off, PAGE));
	is_busy(_metadata, self->fd, &self->before);
	close(sv[0]);
	close(sv[1]);
	EXPECT_EQ(0, late_seal(self->fd));
	is_sealed(self->fd, self->model, NR);
}

TEST_F(late, pinned_by_registered_buffer)
{
	struct iovec iov = { NULL, 2 * UNIT };
	struct uring ring;
	char *map;

	if (uring_open(&ring))
		SKIP(return, "io_uring (CONFIG_IO_URING)");
	map = map_for_pin(_metadata, self->fd);
	iov.iov_base = map + UNIT;
	ASSERT_EQ(0, uring_register(&ring, IORING_REGISTER_BUFFERS, &iov, 1));
	munmap(map, SIZE);
	is_busy(_metadata, self->fd, &self->before);
	ASSERT_EQ(0, uring_register(&ring, IORING_UNREGISTER_BUFFERS, NULL, 0));
	uring_close(&ring);
	EXPECT_EQ(0, late_seal(self->fd));
	is_sealed(self->fd, self->model, NR);
}

TEST_F(late, pinned_by_udmabuf)
{
	struct udmabuf_create create = { .memfd = self->fd, .size = SIZE };
	int dev = open("/dev/udmabuf", O_RDWR), dmabuf;

	if (dev < 0)
		SKIP(return, "/dev/udmabuf (CONFIG_UDMABUF)");
	ASSERT_EQ(0, do_add_seals(self->fd, F_SEAL_SHRINK));
	file_state_get(self->fd, &self->before);
	dmabuf = ioctl(dev, UDMABUF_CREATE, &create);
	ASSERT_LE(0, dmabuf);
	is_busy(_metadata, self->fd, &self->before);
	close(dmabuf);
	EXPECT_EQ(0, late_seal(self->fd));
	__is_sealed(_metadata, self->fd, self->model, NR, SEALS | F_SEAL_SHRINK);
	EXPECT_EQ(-1, ioctl(dev, UDMABUF_CREATE, &create));
	close(dev);
}

/* ---- I/O in flight ---- */

#define NULLB "/sys/kernel/config/nullb/inaccessible"

/* A disk that takes its time, in nanoseconds, for each request. */
static int slow_disk(long delay)
{
	char dev[64], index[16];
	int fd = -1;

	mkdir("/sys/kernel/config", 0755);
	if (mkdir(NULLB, 0755)) {
		/* The file system of the knobs may not be mounted yet. */
		if (syscall(__NR_mount, "none", "/sys/kernel/config", "configfs", 0, NULL))
			return -ENOENT;
		if (mkdir(NULLB, 0755))
			return -ENOENT;
	}
	if (!write_file(NULLB "/irqmode", "2") && !write_file(NULLB "/size", "16") &&
	    !write_file(NULLB "/completion_nsec", "%ld", delay) &&
	    !write_file(NULLB "/power", "1") &&
	    !knob_read(NULLB "/index", index, sizeof(index))) {
		/* Named after the directory; after its number in older kernels */
		fd = open("/dev/inaccessible", O_RDWR | O_DIRECT);
		snprintf(dev, sizeof(dev), "/dev/nullb%s", index);
		if (fd < 0)
			fd = open(dev, O_RDWR | O_DIRECT);
	}
	if (fd < 0)
		rmdir(NULLB);
	return fd;
}

static void remove_slow_disk(int fd)
{
	close(fd);
	write_file(NULLB "/power", "0");
	rmdir(NULLB);
}

/* A read that DMAs into the file's pages, by way of a mapping that is gone */
static int start_read(int disk, aio_context_t *ctx, void *buf)
{
	struct iocb cb = {
		.aio_fildes = disk, .aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_buf = (uintptr_t)buf, .aio_nbytes = PAGE,
	};
	struct iocb *cbs[] = { &cb };

	*ctx = 0;
	if (syscall(__NR_io_setup, 1, ctx))
		return -errno;
	return syscall(__NR_io_submit, *ctx, 1, cbs) == 1 ? 0 : -errno;
}

static long end_read(aio_context_t ctx)
{
	struct io_event event = { .res = -EIO };

	syscall(__NR_io_getevents, ctx, 1, 1, &event, NULL);
	syscall(__NR_io_destroy, ctx);
	return event.res;
}

TEST_F(late, pinned_by_direct_io)
{
	aio_context_t ctx;
	char *map;
	int disk;

	disk = slow_disk(3000000000L);
	if (disk < 0)
		SKIP(return, "null_blk (CONFIG_BLK_DEV_NULL_BLK, CONFIG_CONFIGFS_FS)");
	map = map_for_pin(_metadata, self->fd);
	if (no_such_call(start_read(disk, &ctx, map + 3 * UNIT))) {
		remove_slow_disk(disk);
		SKIP(return, "asynchronous I/O (CONFIG_AIO)");
	}
	munmap(map, SIZE);
	is_busy(_metadata, self->fd, &self->before);
	EXPECT_EQ((long)PAGE, end_read(ctx));
	EXPECT_EQ(0, late_seal(self->fd));
	is_sealed(self->fd, self->model, NR);
	remove_slow_disk(disk);
}

/* I/O that ends soon is waited for. */
TEST_F(late, waits_for_direct_io)
{
	unsigned int tries, waited = 0;
	aio_context_t ctx;
	double before;
	char *map;
	int disk, fd;

	disk = slow_disk(40000000L);
	if (disk < 0)
		SKIP(return, "null_blk (CONFIG_BLK_DEV_NULL_BLK, CONFIG_CONFIGFS_FS)");
	for (tries = 0; tries < 10 && !waited; tries++) {
		fd = mfd_filled(0, SIZE);
		ASSERT_LE(0, fd);
		map = map_for_pin(_metadata, fd);
		before = now();
		if (no_such_call(start_read(disk, &ctx, map))) {
			remove_slow_disk(disk);
			SKIP(return, "asynchronous I/O (CONFIG_AIO)");
		}
		munmap(map, SIZE);
		/* On a machine that is slow enough it may be over already. */
		if (late_seal(fd) == 0 && now() - before > 0.03)
			waited++;
		EXPECT_EQ((long)PAGE, end_read(ctx));
		close(fd);
	}
	EXPECT_LT(0, waited);
	remove_slow_disk(disk);
}

/* ---- a death in the middle ---- */

/* Whoever seals may be killed at any moment: then the file is sealed, or as it was. */
TEST_F(late, killed)
{
	unsigned int sealed = 0, open = 0, us = 1000, round;
	struct file_state before;
	pid_t pid;
	int fd;

	for (round = 0; round < (ON_HUGETLBFS ? 20 : 100); round++) {
		fd = mfd_filled(0, SIZE);
		ASSERT_LE(0, fd);
		file_state_get(fd, &before);
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			late_seal(fd);
			pause();
		}
		usleep(us / 2 + rnd(us));
		ASSERT_EQ(0, kill(pid, SIGKILL));
		ASSERT_EQ(pid, waitpid(pid, NULL, 0));
		if (fcntl(fd, F_GET_SEALS)) {
			is_sealed(fd, self->model, NR);
			aim(&us, false);
			sealed++;
		} else {
			is_open(_metadata, fd, &before);
			aim(&us, true);
			open++;
		}
		close(fd);
	}
	TH_LOG("%u times sealed, %u times not yet", sealed, open);
	EXPECT_LT(0, sealed);
	EXPECT_LT(0, open);
}

/* ---- calls that sleep in the middle ---- */

/*
 * Memory whose first touch waits until told, at the first page: a system call
 * that copies to or from it stops there.
 */
struct trap {
	int uffd;
	unsigned char *mem;
	size_t size;
};

static const char *trap_set(struct trap *trap, size_t size)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };

	trap->uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (trap->uffd < 0 || ioctl(trap->uffd, UFFDIO_API, &api))
		return "userfaultfd (CONFIG_USERFAULTFD)";
	trap->size = size;
	trap->mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* Only the first page waits. */
	memset(trap->mem + UNIT, 0xaa, size - UNIT);
	reg.range.start = (uintptr_t)trap->mem;
	reg.range.len = UNIT;
	return ioctl(trap->uffd, UFFDIO_REGISTER, &reg) ? "userfaultfd" : NULL;
}

/* Wait until somebody is caught. */
static bool trap_wait(struct trap *trap)
{
	struct pollfd pfd = { .fd = trap->uffd, .events = POLLIN };
	struct uffd_msg msg;

	return poll(&pfd, 1, 10000) == 1 &&
	       read(trap->uffd, &msg, sizeof(msg)) == (ssize_t)sizeof(msg);
}

static int trap_release(struct trap *trap, const void *content)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)trap->mem, .src = (uintptr_t)content, .len = UNIT,
	};

	return ioctl(trap->uffd, UFFDIO_COPY, &copy) ? -errno : 0;
}

static void trap_remove(struct trap *trap)
{
	close(trap->uffd);
	munmap(trap->mem, trap->size);
}

/* The call that is to be stopped, made in a thread */
struct call {
	pthread_t thread;
	int fd;
	struct trap trap;
	ssize_t (*fn)(struct call *call);
	ssize_t ret;
	void *map;
	int uffd;
};

static void *make_call(void *arg)
{
	struct call *call = arg;

	call->ret = call->fn(call);
	if (call->ret < 0)
		call->ret = -errno;
	return NULL;
}

static const char *call_start(struct call *call, int fd, ssize_t (*fn)(struct call *call))
{
	const char *lacking = trap_set(&call->trap, SIZE);

	call->fd = fd;
	call->fn = fn;
	if (!lacking && pthread_create(&call->thread, NULL, make_call, call))
		lacking = "threads";
	return lacking;
}

static void call_end(struct __test_metadata *_metadata, struct call *call, const void *content)
{
	ASSERT_EQ(0, trap_release(&call->trap, content));
	ASSERT_EQ(0, pthread_join(call->thread, NULL));
}

static ssize_t call_read(struct call *call)
{
	return pread(call->fd, call->trap.mem, SIZE, 0);
}

static ssize_t call_readv(struct call *call)
{
	struct iovec iov[] = {
		{ call->trap.mem, UNIT }, { call->trap.mem + UNIT, SIZE - UNIT },
	};

	return preadv(call->fd, iov, 2, 0);
}

/* A reader in the middle of copying a page has a reference to it. */
TEST_F(late, reader_in_a_page)
{
	unsigned char *zeroes = calloc(1, UNIT);
	struct call call;
	const char *lacking;

	lacking = call_start(&call, self->fd, call_read);
	if (lacking)
		SKIP(return, "%s", lacking);
	ASSERT_TRUE(trap_wait(&call.trap));
	is_busy(_metadata, self->fd, &self->before);
	call_end(_metadata, &call, zeroes);
	/* For it, too, nothing has changed. */
	EXPECT_EQ((ssize_t)SIZE, call.ret);
	EXPECT_EQ(-1, fill_mismatch(call.trap.mem, 0, SIZE));
	EXPECT_EQ(0, late_seal(self->fd));
	is_sealed(self->fd, self->model, NR);
	trap_remove(&call.trap);
	free(zeroes);
}

/*
 * In the middle of a hole it has none. The file is sealed under its feet, and
 * what follows in the file is out of its reach when it goes on.
 */
static void reader_in_a_hole(struct __test_metadata *_metadata, int fd,
			     ssize_t (*fn)(struct call *call))
{
	unsigned char *zeroes = calloc(1, UNIT), model[NR];
	struct call call;
	const char *lacking;
	size_t i;

	ASSERT_EQ(0, do_fallocate(fd, PUNCH, 0, UNIT));
	lacking = call_start(&call, fd, fn);
	if (lacking)
		SKIP(return, "%s", lacking);
	ASSERT_TRUE(trap_wait(&call.trap));
	ASSERT_EQ(0, late_seal(fd));
	call_end(_metadata, &call, zeroes);
	EXPECT_TRUE(call.ret == (ssize_t)UNIT || call.ret == -EPERM)
		TH_LOG("read %zd bytes", call.ret);
	for (i = UNIT; i < SIZE; i++) {
		ASSERT_EQ(0xaa, call.trap.mem[i])
			TH_LOG("content of the sealed file at %zu", i);
	}
	memset(model, 1, NR);
	model[0] = 0;
	is_sealed(fd, model, NR);
	trap_remove(&call.trap);
	free(zeroes);
}

TEST_F(late, reader_in_a_hole)
{
	reader_in_a_hole(_metadata, self->fd, call_read);
}

TEST_F(late, vector_reader_in_a_hole)
{
	reader_in_a_hole(_metadata, self->fd, call_readv);
}

static ssize_t call_write(struct call *call)
{
	return pwrite(call->fd, call->trap.mem, SIZE, 0);
}

static void *seal_in_thread(void *arg)
{
	return (void *)(long)late_seal(*(int *)arg);
}

/* A writer that was first is done first: all of it gets in, then the seal. */
TEST_F(late, writer_in_a_page)
{
	unsigned char *zeroes = calloc(1, PAGE);
	pthread_t sealer;
	struct call call;
	const char *lacking;
	void *ret;

	if (ON_HUGETLBFS)
		SKIP(return, OF_SHMEM);
	lacking = call_start(&call, self->fd, call_write);
	if (lacking)
		SKIP(return, "%s", lacking);
	ASSERT_TRUE(trap_wait(&call.trap));
	ASSERT_EQ(0, pthread_create(&sealer, NULL, seal_in_thread, &self->fd));
	usleep(100000);
	EXPECT_EQ(0, fcntl(self->fd, F_GET_SEALS));
	call_end(_metadata, &call, zeroes);
	pthread_join(sealer, &ret);
	EXPECT_EQ((ssize_t)SIZE, call.ret);
	EXPECT_EQ(NULL, ret);
	is_sealed(self->fd, self->model, NR);
	trap_remove(&call.trap);
	free(zeroes);
}

/* Pages of the machine, as many as are pinned at once */
#define SOME	(NR * PAGE)

static ssize_t call_process_vm_readv(struct call *call)
{
	struct iovec here = { call->trap.mem, SOME }, there = { call->map, SOME };

	return process_vm_readv(getpid(), &here, 1, &there, 1, 0);
}

TEST_F(late, pinned_by_process_vm_readv)
{
	unsigned char *zeroes = calloc(1, UNIT);
	struct call call;
	const char *lacking;

	call.map = map_for_pin(_metadata, self->fd);
	if (no_such_call(neg_errno(process_vm_readv(getpid(), NULL, 0, NULL, 0, 0))))
		SKIP(return, "process_vm_readv() (CONFIG_CROSS_MEMORY_ATTACH)");
	lacking = call_start(&call, self->fd, call_process_vm_readv);
	if (lacking)
		SKIP(return, "%s", lacking);
	ASSERT_TRUE(trap_wait(&call.trap));
	munmap(call.map, SIZE);
	is_busy(_metadata, self->fd, &self->before);
	call_end(_metadata, &call, zeroes);
	EXPECT_EQ((ssize_t)SOME, call.ret);
	EXPECT_EQ(-1, fill_mismatch(call.trap.mem, 0, SOME));
	EXPECT_EQ(0, late_seal(self->fd));
	trap_remove(&call.trap);
	free(zeroes);
}

static ssize_t call_uffd_copy(struct call *call)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)call->map, .src = (uintptr_t)call->trap.mem, .len = UNIT,
	};

	return ioctl(call->uffd, UFFDIO_COPY, &copy);
}

/*
 * UFFDIO_COPY has looked at the mapping, lets go of it while it sleeps on the
 * source, and looks again: the mapping is gone, the file is sealed.
 */
TEST_F(late, uffd_copy_in_progress)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	unsigned char *zeroes = calloc(1, UNIT);
	struct call call;
	const char *lacking;

	if (ON_HUGETLBFS)
		api.features = UFFD_FEATURE_MISSING_HUGETLBFS;
	ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, 2 * UNIT, UNIT));
	self->model[2] = 0;
	call.uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (call.uffd < 0 || ioctl(call.uffd, UFFDIO_API, &api))
		SKIP(return, "userfaultfd on shmem (CONFIG_USERFAULTFD)");
	call.map = mmap(NULL, UNIT, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 2 * UNIT);
	ASSERT_NE(MAP_FAILED, call.map);
	reg.range.start = (uintptr_t)call.map;
	reg.range.len = UNIT;
	ASSERT_EQ(0, ioctl(call.uffd, UFFDIO_REGISTER, &reg));
	lacking = call_start(&call, self->fd, call_uffd_copy);
	if (lacking)
		SKIP(return, "%s", lacking);
	ASSERT_TRUE(trap_wait(&call.trap));
	munmap(call.map, UNIT);
	ASSERT_EQ(0, late_seal(self->fd));
	call_end(_metadata, &call, zeroes);
	EXPECT_GT(0, call.ret);
	is_sealed(self->fd, self->model, NR);
	trap_remove(&call.trap);
	close(call.uffd);
	free(zeroes);
}

STORE_HARNESS_MAIN
