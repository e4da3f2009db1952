// SPDX-License-Identifier: GPL-2.0
/*
 * F_SEAL_INACCESSIBLE against everything that gets at the content of a memfd,
 * both at the same moment. When the seal has been granted,
 *
 *  - nobody holds a mapping of the file, or a reference to one of its pages,
 *    that a call has given them;
 *  - no call that starts from then on gets anything;
 *  - whatever a call gets that was under way is from before the seal: pages
 *    that come after it read as zero, and the fill has no zeroes;
 *  - no page appears in the file but by fallocate().
 *
 * And when it has been refused, nobody has noticed.
 *
 * What is called a page here is one of the store: a huge page on hugetlbfs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>

#include "../kselftest_harness.h"
#include "inaccessible_common.h"

/* Huge pages take their time anyway. */
#define NR	(ON_HUGETLBFS ? 4UL : 16UL)
#define MANY	(ON_HUGETLBFS ? 8UL : 256UL)	/* for calls that take longer */
#define OVER	(ON_HUGETLBFS ? NR * UNIT : HUGE)

struct race;

struct scenario {
	bool many;		/* pages in the file, MANY instead of NR */
	bool huge;		/* or as many as a huge page has */
	bool of_shmem;		/* hugetlbfs has no such calls */
	bool holes;		/* every fourth page is a hole */
	bool sparse;		/* or all are, but for every 64th */
	bool until_sealed;	/* try again after EBUSY, or EINVAL */
	bool never;		/* the seal is never to be granted */
	unsigned int tries;	/* how often it is asked for then, 20 by default */
	bool contest;		/* who comes first wins: both have to, at times */
	bool converts;		/* the contender may convert pages */
	void (*before)(struct race *r);
	void (*contend)(struct race *r);
	void (*assist)(struct race *r);
	void (*after)(struct race *r);
};

struct race {
	const struct scenario *s;
	pthread_t contender, assistant;
	int fd;
	size_t nr;
	unsigned char *model, *snapshot;
	unsigned int round;

	/* Where the threads meet, before and after each round */
	pthread_barrier_t barrier;
	unsigned int parties, awake;
	bool quit;

	/* What the sealer says, and what it asks the contender to refrain from */
	int seal;
	bool sealed, tried;

	/* For the scenarios */
	bool holding, refused;
	unsigned char *map, *buf;
	int uffd, pipe[2], pin[2];
	struct uring ring;
	pid_t child;
	void *place[2];

	/* A delay, in turns of a loop, that is adjusted to where both may win */
	long skew, step, pause;
	unsigned int granted, busy, collapsed;
	char failure[200];
};

static void __printf(2, 3) fails(struct race *r, const char *fmt, ...)
{
	va_list ap;

	/* The first one counts. */
	if (r->failure[0])
		return;
	va_start(ap, fmt);
	vsnprintf(r->failure, sizeof(r->failure), fmt, ap);
	va_end(ap);
}

/* Wait for all. Asleep, for on a busy machine the others may take a while. */
static void meet(struct race *r)
{
	pthread_barrier_wait(&r->barrier);
}

/* Then wait for all to be awake, and so be there at the same moment. */
static void start_together(struct race *r)
{
	unsigned int turns = 0, all = (r->round + 1) * r->parties;

	__atomic_add_fetch(&r->awake, 1, __ATOMIC_ACQ_REL);
	while (__atomic_load_n(&r->awake, __ATOMIC_ACQUIRE) < all)
		if (++turns > 10000)
			sched_yield();
}

static void spin(long turns)
{
	while (turns-- > 0)
		__asm__ volatile("" ::: "memory");
}

static bool get(bool *flag)
{
	return __atomic_load_n(flag, __ATOMIC_SEQ_CST);
}

static void set(bool *flag, bool value)
{
	__atomic_store_n(flag, value, __ATOMIC_SEQ_CST);
}

/* One processor for each: the pages of a new file are in batches of its own. */
static void run_on(unsigned int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sysconf(_SC_NPROCESSORS_ONLN) > 1)
		sched_setaffinity(0, sizeof(set), &set);
}

static void *contender(void *arg)
{
	struct race *r = arg;

	run_on(1);
	for (;;) {
		meet(r);
		if (r->quit)
			return NULL;
		start_together(r);
		spin(-r->skew);
		r->s->contend(r);
		meet(r);
	}
}

static void *assistant(void *arg)
{
	struct race *r = arg;

	for (;;) {
		meet(r);
		if (r->quit)
			return NULL;
		start_together(r);
		r->s->assist(r);
		meet(r);
	}
}

/* ---- a byte at a time, whether it is there or not ---- */

static __thread sigjmp_buf guard;

static void on_fault(int sig)
{
	siglongjmp(guard, sig);
}

static void guard_faults(void)
{
	struct sigaction act = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };

	sigaction(SIGBUS, &act, NULL);
	sigaction(SIGSEGV, &act, NULL);
}

/* Read the mapping of pages @from ff. and judge what is found there. */
static void look(struct race *r, const unsigned char *p, size_t from, size_t nr)
{
	int sig = sigsetjmp(guard, 0);
	size_t i;

	if (sig) {
		fails(r, "signal %d in a mapping", sig);
		return;
	}
	for (i = 0; i < nr; i++) {
		size_t offset = (from + i) * UNIT;
		unsigned char byte = __atomic_load_n(p + i * UNIT, __ATOMIC_RELAXED);

		if (r->model[from + i] && byte != fill_byte(offset))
			fails(r, "page %zu of a mapping reads %#x", from + i, byte);
	}
}

/* Judge what a call has read from the start of the file: a byte of each page. */
static void judge(struct race *r, const unsigned char *buf, ssize_t len)
{
	ssize_t i;

	for (i = 0; i < len; i += UNIT)
		if (r->model[i / UNIT] && buf[i] != fill_byte(i))
			fails(r, "read %#x at %zd", buf[i], i);
}

/*
 * What a call returned that had started when @was_sealed was read: after the
 * seal it must fail, and it may fail only if the seal has been or will be.
 */
static bool verdict(struct race *r, const char *what, bool was_sealed, long ret)
{
	if (ret >= 0 && was_sealed)
		fails(r, "%s of the sealed file returned %ld", what, ret);
	if (ret == -EPERM)
		set(&r->refused, true);
	else if (ret < 0)
		fails(r, "%s: %s", what, strerror(-ret));
	return ret >= 0;
}

/*
 * Go on until the seal is there, or has been refused for good; with pauses that
 * get longer, for a file that is always in use can't be sealed.
 */
static bool open_end(struct race *r)
{
	spin(r->pause);
	r->pause = r->pause < 10000000 ? r->pause * 3 / 2 + 100 : 100;
	return !get(&r->tried) && !get(&r->refused) && !r->failure[0];
}

/* ---- mappings ---- */

/* Address space where the store can be mapped, huge pages or not */
static void *reserve(size_t size)
{
	unsigned char *p = mmap(NULL, size + UNIT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t before = -(uintptr_t)p & (UNIT - 1);

	if (before)
		munmap(p, before);
	munmap(p + before + size, UNIT - before);
	return p + before;
}

/* Once, and keep it: one of the two has to lose. */
static void map_and_keep(struct race *r, int prot, int flags)
{
	r->map = mmap(NULL, r->nr * UNIT, prot, flags, r->fd, 0);
	if (r->map == MAP_FAILED) {
		verdict(r, "mmap()", false, -errno);
		r->map = NULL;
		return;
	}
	if (!prot && mprotect(r->map, r->nr * UNIT, PROT_READ))
		fails(r, "mprotect(): %s", strerror(errno));
	look(r, r->map, 0, r->nr / 2);
}

static void after_map(struct race *r)
{
	if (!r->map)
		return;
	if (!r->seal)
		fails(r, "sealed, and mapped");
	else
		look(r, r->map, 0, r->nr);
	munmap(r->map, r->nr * UNIT);
	r->map = NULL;
}

static void contend_map_shared(struct race *r)
{
	map_and_keep(r, PROT_READ | PROT_WRITE, MAP_SHARED);
}

static void contend_map_private(struct race *r)
{
	map_and_keep(r, PROT_READ | PROT_WRITE, MAP_PRIVATE);
}

static void contend_map_populate(struct race *r)
{
	map_and_keep(r, PROT_READ, MAP_SHARED | MAP_POPULATE);
}

/*
 * In the place of a large mapping. The seals have been looked at before that
 * is taken down, and the new mapping is known to the file only after.
 */
static void before_map_over(struct race *r)
{
	r->place[0] = reserve(OVER);
	if (mmap(r->place[0], OVER, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_FIXED, -1, 0) == MAP_FAILED)
		fails(r, "mmap(): %s", strerror(errno));
}

static void contend_map_over(struct race *r)
{
	const int flags = (r->round & 1 ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED;

	r->map = mmap(r->place[0], OVER, PROT_READ | PROT_WRITE, flags, r->fd, 0);
	if (r->map == MAP_FAILED) {
		verdict(r, "mmap()", false, -errno);
		r->map = NULL;
		return;
	}
	look(r, r->map, 0, r->nr / 2);
}

static void after_map_over(struct race *r)
{
	after_map(r);
	munmap(r->place[0], OVER);
}

/* What a mapping allows at first does not matter. */
static void contend_map_none(struct race *r)
{
	map_and_keep(r, PROT_NONE, MAP_SHARED);
}

/* Over and over: a mapping is good as long as it lasts. */
static void map_again(struct race *r, int prot, int flags)
{
	do {
		bool was_sealed = get(&r->sealed);
		void *p = mmap(NULL, r->nr * UNIT, prot, flags, r->fd, 0);

		if (verdict(r, "mmap()", was_sealed, p == MAP_FAILED ? -errno : 0)) {
			look(r, p, 0, r->nr);
			munmap(p, r->nr * UNIT);
		}
	} while (open_end(r));
}

static void contend_map_again(struct race *r)
{
	map_again(r, PROT_READ, r->round & 1 ? MAP_SHARED : MAP_PRIVATE);
}

/* A mapping all the time, though never in the same place for long */
static void before_remap(struct race *r)
{
	r->place[0] = reserve(4 * r->nr * UNIT);
	r->place[1] = r->place[0] + 2 * r->nr * UNIT;
	r->map = mmap(r->place[0], r->nr * UNIT, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		      r->fd, 0);
	if (r->map != r->place[0])
		fails(r, "mmap(): %s", strerror(errno));
}

static void contend_remap(struct race *r)
{
	const size_t half = r->nr / 2 * UNIT;
	unsigned int i = 0;

	do {
		unsigned char *to = r->place[++i & 1], *old = r->map;

		/* Split it, move the parts, join them again */
		mprotect(old + half, half, PROT_READ);
		if (mremap(old, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to ||
		    mremap(old + half, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, to + half) !=
		    to + half) {
			fails(r, "mremap(): %s", strerror(errno));
			return;
		}
		mprotect(to + half, half, PROT_READ | PROT_WRITE);
		r->map = to;
		look(r, r->map, 0, r->nr);
	} while (open_end(r));
}

static void after_remap(struct race *r)
{
	munmap(r->place[0], 4 * r->nr * UNIT);
	r->map = NULL;
}

/* A mapping that is handed from process to process */
static void before_fork(struct race *r)
{
	r->child = 0;
	r->map = mmap(NULL, r->nr * UNIT, PROT_READ, MAP_SHARED, r->fd, 0);
	if (r->map == MAP_FAILED)
		fails(r, "mmap(): %s", strerror(errno));
	if (pipe(r->pipe))
		fails(r, "pipe(): %s", strerror(errno));
}

static void contend_fork(struct race *r)
{
	unsigned char byte = 0;

	r->child = fork();
	if (r->child < 0) {
		fails(r, "fork(): %s", strerror(errno));
		return;
	}
	if (!r->child) {
		struct race mine = *r;

		close(r->pipe[1]);
		/* Told to end by the pipe, then by its last look at the file */
		if (read(r->pipe[0], &byte, 1) < 0)
			_exit(2);
		look(&mine, r->map, 0, r->nr);
		_exit(mine.failure[0] ? 1 : 0);
	}
	munmap(r->map, r->nr * UNIT);
}

static void after_fork(struct race *r)
{
	int status = -1;

	close(r->pipe[0]);
	close(r->pipe[1]);
	if (r->child > 0 && (waitpid(r->child, &status, 0) != r->child || status))
		fails(r, "the child of the mapping lost sight of it: status %x", status);
	r->map = NULL;
}

/* Faults in a mapping that is there from start to end don't notice a thing. */
static void before_faults(struct race *r)
{
	r->map = mmap(NULL, r->nr * UNIT, PROT_READ | PROT_WRITE,
		      r->round & 1 ? MAP_SHARED : MAP_PRIVATE, r->fd, 0);
	if (r->map == MAP_FAILED)
		fails(r, "mmap(): %s", strerror(errno));
}

static void contend_faults(struct race *r)
{
	do {
		look(r, r->map, 0, r->nr);
		madvise(r->map, r->nr * UNIT, MADV_DONTNEED);
	} while (open_end(r));
}

/* ---- system calls ---- */

static void contend_read(struct race *r)
{
	do {
		bool was_sealed = get(&r->sealed);
		ssize_t ret = neg_errno(pread(r->fd, r->buf, r->nr * UNIT, 0));

		if (verdict(r, "pread()", was_sealed, ret))
			judge(r, r->buf, ret);
	} while (open_end(r));
}

static void contend_read_reopened(struct race *r)
{
	do {
		bool was_sealed = get(&r->sealed);
		int fd = mfd_reopen(r->fd, O_RDONLY);
		ssize_t ret = neg_errno(pread(fd, r->buf, r->nr * UNIT, 0));

		if (verdict(r, "pread()", was_sealed, ret))
			judge(r, r->buf, ret);
		close(fd);
	} while (open_end(r));
}

/*
 * While the contender is holding pages, the seal can't have been granted. It
 * lets go of them on its own, as sealing waits a little.
 */
static void hold_pages(struct race *r)
{
	set(&r->holding, true);
	spin(100000);
	set(&r->holding, false);
}

static void before_pipe(struct race *r)
{
	if (pipe(r->pipe))
		fails(r, "pipe(): %s", strerror(errno));
}

static void after_pipe(struct race *r)
{
	close(r->pipe[0]);
	close(r->pipe[1]);
}

static void contend_splice(struct race *r)
{
	do {
		bool was_sealed = get(&r->sealed);
		off_t off = 0;
		ssize_t ret = neg_errno(splice(r->fd, &off, r->pipe[1], NULL, r->nr * UNIT, 0));

		if (!verdict(r, "splice()", was_sealed, ret))
			break;
		hold_pages(r);
		if (read(r->pipe[0], r->buf, ret) == ret)
			judge(r, r->buf, ret);
	} while (open_end(r));
}

static void contend_vmsplice(struct race *r)
{
	do {
		bool was_sealed = get(&r->sealed);
		struct iovec iov = { NULL, 4 * 4096 };
		ssize_t ret;

		iov.iov_base = mmap(NULL, 4 * UNIT, PROT_READ, MAP_SHARED, r->fd, 0);
		ret = iov.iov_base == MAP_FAILED ? -errno : 0;
		if (!verdict(r, "mmap()", was_sealed, ret))
			break;
		ret = vmsplice(r->pipe[1], &iov, 1, 0);
		munmap(iov.iov_base, 4 * UNIT);
		if (ret < 0) {
			fails(r, "vmsplice(): %s", strerror(errno));
			break;
		}
		hold_pages(r);
		if (read(r->pipe[0], r->buf, ret) == ret)
			judge(r, r->buf, ret);
	} while (open_end(r));
}

static void contend_register_buffer(struct race *r)
{
	do {
		bool was_sealed = get(&r->sealed);
		struct iovec iov = { NULL, 4 * UNIT };
		int ret;

		iov.iov_base = mmap(NULL, iov.iov_len, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd,
				    0);
		ret = iov.iov_base == MAP_FAILED ? -errno : 0;
		if (!verdict(r, "mmap()", was_sealed, ret))
			break;
		ret = uring_register(&r->ring, IORING_REGISTER_BUFFERS, &iov, 1);
		munmap(iov.iov_base, iov.iov_len);
		if (ret < 0) {
			fails(r, "IORING_REGISTER_BUFFERS: %s", strerror(-ret));
			break;
		}
		hold_pages(r);
		uring_register(&r->ring, IORING_UNREGISTER_BUFFERS, NULL, 0);
	} while (open_end(r));
}

/*
 * One page is in a pipe, so that it takes the sealer a while to give up. Who
 * comes by meanwhile finds the file as it is afterwards: not sealed.
 */
static void before_pinned(struct race *r)
{
	struct iovec iov = { NULL, 1 };

	before_pipe(r);
	iov.iov_base = mmap(NULL, UNIT, PROT_READ, MAP_SHARED, r->fd, 0);
	if (iov.iov_base == MAP_FAILED || pipe(r->pin) || vmsplice(r->pin[1], &iov, 1, 0) != 1)
		fails(r, "vmsplice(): %s", strerror(errno));
	munmap(iov.iov_base, UNIT);
}

static void after_pinned(struct race *r)
{
	after_pipe(r);
	close(r->pin[0]);
	close(r->pin[1]);
}

/* Into holes as well: that they stay holes is seen when all is over. */
static void contend_write(struct race *r)
{
	unsigned char *buf = r->buf;
	size_t page = 0;

	do {
		bool was_sealed = get(&r->sealed);

		page = (page + 3) % r->nr;
		fill(buf, page * UNIT, 16);
		verdict(r, "pwrite()", was_sealed, neg_errno(pwrite(r->fd, buf, 16, page * UNIT)));
	} while (open_end(r));
}

static void contend_splice_in(struct race *r)
{
	do {
		bool was_sealed = get(&r->sealed);
		off_t off = 3 * UNIT;
		ssize_t ret;

		fill(r->buf, off, UNIT);
		if (write(r->pipe[1], r->buf, UNIT) != (ssize_t)UNIT)
			break;
		ret = neg_errno(splice(r->pipe[0], NULL, r->fd, &off, UNIT, 0));
		if (!verdict(r, "splice()", was_sealed, ret))
			break;
	} while (open_end(r));
}

/* Legal before, and senseless after: partial holes, pages past the size */
static void contend_odd_fallocate(struct race *r)
{
	do {
		bool was_sealed = get(&r->sealed);
		long ret = do_fallocate(r->fd, FALLOC_FL_KEEP_SIZE, r->nr * UNIT, 3 * UNIT);

		if (ret == -EINVAL)
			ret = -EPERM;
		verdict(r, "fallocate() past the size", was_sealed, ret);
		was_sealed = get(&r->sealed);
		ret = do_fallocate(r->fd, PUNCH, r->nr * UNIT, UNIT / 2);
		if (ret == -EINVAL)
			ret = -EPERM;
		verdict(r, "unaligned hole", was_sealed, ret);
	} while (open_end(r));
}

/* Legal at all times */
static void contend_fallocate(struct race *r)
{
	unsigned int i = 0;

	do {
		bool private = i++ & 1;
		size_t page = i * 7 % r->nr;
		int err = do_fallocate(r->fd, private ? 0 : PUNCH, page * UNIT, UNIT);

		if (err)
			fails(r, "fallocate(): %s", strerror(-err));
		else if (blocks_pages(r->fd) != (long)r->nr - !private)
			fails(r, "%ld pages after %s of one", blocks_pages(r->fd),
			      private ? "allocation" : "punch");
		if (!private)
			err = do_fallocate(r->fd, 0, page * UNIT, UNIT);
	} while (open_end(r));
}

static void contend_truncate(struct race *r)
{
	unsigned int i = 0;

	do {
		bool was_sealed = get(&r->sealed);
		off_t size = ++i & 1 ? r->nr * UNIT - 100 : r->nr * UNIT;

		verdict(r, "ftruncate()", was_sealed && size % UNIT, do_ftruncate(r->fd, size));
	} while (open_end(r));
}

static void after_truncate(struct race *r)
{
	off_t size = file_size(r->fd);

	if (!r->seal && size != (off_t)(r->nr * UNIT))
		fails(r, "sealed with a size of %lld", (long long)size);
}

/* ---- what needs a mapping that somebody else takes away ---- */

static void before_uffd(struct race *r)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = ON_HUGETLBFS ?
			UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_HUGETLBFS :
			UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM,
	};

	r->uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (r->uffd < 0 || ioctl(r->uffd, UFFDIO_API, &api))
		fails(r, "userfaultfd: %s", strerror(errno));
}

static void after_uffd(struct race *r)
{
	close(r->uffd);
}

static void *map_for_uffd(struct race *r, int flags, int mode)
{
	struct uffdio_register reg = { .mode = mode };
	void *p;

	p = mmap(NULL, r->nr * UNIT, PROT_READ | PROT_WRITE, flags, r->fd, 0);
	if (p == MAP_FAILED) {
		verdict(r, "mmap()", false, -errno);
		return NULL;
	}
	reg.range.start = (uintptr_t)p;
	reg.range.len = r->nr * UNIT;
	if (ioctl(r->uffd, UFFDIO_REGISTER, &reg))
		fails(r, "UFFDIO_REGISTER: %s", strerror(errno));
	return p;
}

/* The assistant unmaps what is put here. */
static void offer(struct race *r, void *p)
{
	__atomic_store_n(&r->map, p, __ATOMIC_RELEASE);
}

static bool unmap_offered(struct race *r)
{
	unsigned char *p = __atomic_exchange_n(&r->map, NULL, __ATOMIC_ACQ_REL);

	if (p)
		munmap(p, r->nr * UNIT);
	return p;
}

static void assist_unmap(struct race *r)
{
	unsigned int i = 0;

	do {
		spin(++i * 777 % 5000);
		unmap_offered(r);
	} while (open_end(r));
}

static void contend_uffd_continue(struct race *r)
{
	do {
		struct uffdio_continue cont = { .range.len = UNIT };
		unsigned char *p = map_for_uffd(r, MAP_PRIVATE, UFFDIO_REGISTER_MODE_MINOR);
		size_t page;

		if (!p)
			break;
		offer(r, p);
		for (page = 0; page < r->nr; page++) {
			cont.range.start = (uintptr_t)p + page * UNIT;
			if (ioctl(r->uffd, UFFDIO_CONTINUE, &cont))
				break;
		}
		unmap_offered(r);
	} while (open_end(r));
}

/* As above, in a mapping that stays, to see the content it brings in */
static void contend_uffd_continue_keep(struct race *r)
{
	struct uffdio_continue cont = { 0 };

	r->map = map_for_uffd(r, MAP_PRIVATE, UFFDIO_REGISTER_MODE_MINOR);
	if (!r->map)
		return;
	cont.range.start = (uintptr_t)r->map;
	cont.range.len = r->nr * UNIT;
	if (ioctl(r->uffd, UFFDIO_CONTINUE, &cont))
		fails(r, "UFFDIO_CONTINUE: %s", strerror(errno));
	else
		look(r, r->map, 0, r->nr);
}

static void after_uffd_keep(struct race *r)
{
	after_map(r);
	after_uffd(r);
}

static void contend_uffd_copy(struct race *r)
{
	do {
		unsigned char *p = map_for_uffd(r, MAP_SHARED, UFFDIO_REGISTER_MODE_MISSING);
		size_t page;

		if (!p)
			break;
		offer(r, p);
		/* Only the holes take it. */
		for (page = 3; page < r->nr; page += 4) {
			struct uffdio_copy copy = {
				.dst = (uintptr_t)p + page * UNIT, .src = (uintptr_t)r->buf,
				.len = UNIT,
			};

			if (ioctl(r->uffd, UFFDIO_COPY, &copy))
				break;
		}
		unmap_offered(r);
	} while (open_end(r));
}

#define HUGE_NR 512

static void contend_collapse(struct race *r)
{
	do {
		unsigned char *p, *at;

		p = mmap(NULL, 2 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		at = (unsigned char *)(((uintptr_t)p + HUGE - 1) & -HUGE);
		if (mmap(at, HUGE, PROT_READ, MAP_SHARED | MAP_FIXED, r->fd, 0) == MAP_FAILED) {
			verdict(r, "mmap()", false, -errno);
			munmap(p, 2 * HUGE);
			break;
		}
		/* The file must not shrink in the assistant's hands: HUGE_NR pages */
		offer(r, at);
		r->collapsed += !madvise(at, HUGE, 25);	/* MADV_COLLAPSE */
		unmap_offered(r);
		munmap(p, 2 * HUGE);
	} while (open_end(r));
}

static void contend_seal_write(struct race *r)
{
	int ret = do_add_seals(r->fd, F_SEAL_WRITE);

	verdict(r, "F_SEAL_WRITE", false, ret);
	r->holding = !ret;
}

static void after_seal_write(struct race *r)
{
	unsigned int seals = fcntl(r->fd, F_GET_SEALS);

	if (seals & F_SEAL_WRITE && seals & F_SEAL_INACCESSIBLE)
		fails(r, "sealed both ways");
	if (!r->seal == r->holding)
		fails(r, "sealed %s", r->seal ? "neither way" : "both ways");
	r->holding = false;
}

/* ---- the scenarios ---- */

FIXTURE(race)
{
	struct race r;
	long huge_free, huge_reserved;
};

FIXTURE_VARIANT(race)
{
	struct scenario s;
};

FIXTURE_VARIANT_ADD(race, map_shared)
{
	.s = { .contend = contend_map_shared, .after = after_map, .contest = true },
};

FIXTURE_VARIANT_ADD(race, map_private)
{
	.s = { .contend = contend_map_private, .after = after_map, .contest = true },
};

FIXTURE_VARIANT_ADD(race, map_populate)
{
	.s = { .contend = contend_map_populate, .after = after_map, .contest = true },
};

FIXTURE_VARIANT_ADD(race, map_over)
{
	.s = {
		.before = before_map_over, .contend = contend_map_over, .after = after_map_over,
		.contest = true,
	},
};

FIXTURE_VARIANT_ADD(race, map_none)
{
	.s = { .contend = contend_map_none, .after = after_map, .contest = true },
};

FIXTURE_VARIANT_ADD(race, map_again)
{
	.s = { .contend = contend_map_again, .until_sealed = true },
};

FIXTURE_VARIANT_ADD(race, map_again_once)
{
	.s = { .contend = contend_map_again },
};

FIXTURE_VARIANT_ADD(race, remap)
{
	.s = {
		.before = before_remap, .contend = contend_remap, .after = after_remap,
		.never = true,
	},
};

FIXTURE_VARIANT_ADD(race, fork)
{
	.s = {
		.before = before_fork, .contend = contend_fork, .after = after_fork,
		.never = true,
	},
};

FIXTURE_VARIANT_ADD(race, faults)
{
	.s = {
		.before = before_faults, .contend = contend_faults, .after = after_map,
		.never = true,
	},
};

FIXTURE_VARIANT_ADD(race, read)
{
	.s = { .many = true, .contend = contend_read },
};

FIXTURE_VARIANT_ADD(race, read_until_sealed)
{
	.s = { .many = true, .contend = contend_read, .until_sealed = true },
};

FIXTURE_VARIANT_ADD(race, read_reopened)
{
	.s = { .many = true, .contend = contend_read_reopened, .until_sealed = true },
};

FIXTURE_VARIANT_ADD(race, read_holes)
{
	.s = { .many = true, .contend = contend_read, .until_sealed = true, .holes = true },
};

FIXTURE_VARIANT_ADD(race, splice)
{
	.s = {
		.before = before_pipe, .contend = contend_splice, .after = after_pipe,
		.until_sealed = true, .of_shmem = true,
	},
};

FIXTURE_VARIANT_ADD(race, splice_holes)
{
	.s = {
		.before = before_pipe, .contend = contend_splice, .after = after_pipe,
		.until_sealed = true, .holes = true, .of_shmem = true,
	},
};

FIXTURE_VARIANT_ADD(race, vmsplice)
{
	.s = {
		.before = before_pipe, .contend = contend_vmsplice, .after = after_pipe,
		.until_sealed = true,
	},
};

FIXTURE_VARIANT_ADD(race, register_buffer)
{
	.s = { .contend = contend_register_buffer, .until_sealed = true },
};

FIXTURE_VARIANT_ADD(race, write)
{
	.s = { .contend = contend_write, .until_sealed = true, .holes = true, .of_shmem = true },
};

FIXTURE_VARIANT_ADD(race, splice_in)
{
	.s = {
		.before = before_pipe, .contend = contend_splice_in, .after = after_pipe,
		.until_sealed = true, .holes = true, .of_shmem = true,
	},
};

FIXTURE_VARIANT_ADD(race, odd_fallocate)
{
	.s = { .contend = contend_odd_fallocate, .until_sealed = true },
};

FIXTURE_VARIANT_ADD(race, fallocate)
{
	.s = { .contend = contend_fallocate, .until_sealed = true, .converts = true },
};

FIXTURE_VARIANT_ADD(race, truncate)
{
	.s = {
		.contend = contend_truncate, .after = after_truncate, .until_sealed = true,
		.converts = true, .of_shmem = true,
	},
};

FIXTURE_VARIANT_ADD(race, pinned_read)
{
	.s = {
		.before = before_pinned, .contend = contend_read, .after = after_pinned,
		.never = true, .tries = 1,
	},
};

FIXTURE_VARIANT_ADD(race, pinned_map)
{
	.s = {
		.before = before_pinned, .contend = contend_map_again, .after = after_pinned,
		.never = true, .tries = 1,
	},
};

FIXTURE_VARIANT_ADD(race, pinned_splice)
{
	.s = {
		.before = before_pinned, .contend = contend_splice, .after = after_pinned,
		.never = true, .tries = 1, .of_shmem = true,
	},
};

FIXTURE_VARIANT_ADD(race, pinned_write)
{
	.s = {
		.before = before_pinned, .contend = contend_write, .after = after_pinned,
		.never = true, .tries = 1, .holes = true, .of_shmem = true,
	},
};

FIXTURE_VARIANT_ADD(race, uffd_continue)
{
	.s = {
		.before = before_uffd, .contend = contend_uffd_continue, .assist = assist_unmap,
		.after = after_uffd, .until_sealed = true, .holes = true,
	},
};

FIXTURE_VARIANT_ADD(race, uffd_continue_keep)
{
	.s = {
		.before = before_uffd, .contend = contend_uffd_continue_keep,
		.after = after_uffd_keep, .contest = true,
	},
};

FIXTURE_VARIANT_ADD(race, uffd_copy)
{
	.s = {
		.before = before_uffd, .contend = contend_uffd_copy, .assist = assist_unmap,
		.after = after_uffd, .until_sealed = true, .holes = true,
	},
};

FIXTURE_VARIANT_ADD(race, collapse)
{
	.s = {
		.contend = contend_collapse, .assist = assist_unmap, .until_sealed = true,
		.sparse = true, .huge = true, .of_shmem = true,
	},
};

FIXTURE_VARIANT_ADD(race, seal_write)
{
	.s = { .contend = contend_seal_write, .after = after_seal_write, .contest = true },
};

FIXTURE_SETUP(race)
{
	const char *lacking = late_seal_missing();
	struct race *r = &self->r;

	if (lacking)
		SKIP(return, "%s", lacking);
	if (ON_HUGETLBFS && variant->s.of_shmem)
		SKIP(return, OF_SHMEM);
	if (variant->s.before == before_uffd) {
		before_uffd(r);
		if (r->failure[0])
			SKIP(return, "userfaultfd on shmem (CONFIG_USERFAULTFD)");
		after_uffd(r);
	}
	if (variant->s.contend == contend_register_buffer && uring_open(&r->ring))
		SKIP(return, "io_uring (CONFIG_IO_URING)");

	self->huge_free = meminfo_kb("HugePages_Free");
	self->huge_reserved = meminfo_kb("HugePages_Rsvd");
	r->s = &variant->s;
	r->nr = variant->s.huge ? HUGE_NR : variant->s.many ? MANY : NR;
	r->buf = malloc(r->nr * UNIT);
	r->model = malloc(r->nr);
	r->snapshot = malloc(r->nr);
	ASSERT_NE(NULL, r->buf);
	ASSERT_NE(NULL, r->model);
	ASSERT_NE(NULL, r->snapshot);
	r->parties = variant->s.assist ? 3 : 2;
	ASSERT_EQ(0, pthread_barrier_init(&r->barrier, NULL, r->parties));
	guard_faults();
	rnd_init();
	run_on(0);
	ASSERT_EQ(0, pthread_create(&r->contender, NULL, contender, r));
	if (variant->s.assist)
		ASSERT_EQ(0, pthread_create(&r->assistant, NULL, assistant, r));
}

FIXTURE_TEARDOWN(race)
{
	struct race *r = &self->r;

	r->quit = true;
	meet(r);
	pthread_join(r->contender, NULL);
	if (variant->s.assist)
		pthread_join(r->assistant, NULL);
	/* Mappings that have been undone have reserved nothing, either. */
	EXPECT_EQ(self->huge_free, meminfo_kb("HugePages_Free"));
	EXPECT_EQ(self->huge_reserved, meminfo_kb("HugePages_Rsvd"));
	if (variant->s.contend == contend_register_buffer)
		uring_close(&r->ring);
	free(r->buf);
	free(r->model);
	free(r->snapshot);
}

static int file_for_race(struct race *r)
{
	int fd = mfd_ordinary(0, r->nr * UNIT);
	size_t i;

	for (i = 0; fd >= 0 && i < r->nr; i++) {
		unsigned char byte = fill_byte(i * UNIT);

		r->model[i] = r->s->sparse ? i % 64 == 0 : !r->s->holes || i % 4 != 3;
		/* One byte of each page is all that is looked at. */
		if (r->model[i] && mfd_put(fd, &byte, 1, i * UNIT))
			fails(r, "cannot write page %zu", i);
	}
	return fd;
}

/* The map page by page: others may move the file offset meanwhile. */
static void read_map(struct race *r, unsigned char *map)
{
	size_t i;

	for (i = 0; i < r->nr; i++)
		map[i] = lseek(r->fd, i * UNIT, SEEK_DATA) == (off_t)(i * UNIT);
}

/*
 * Replace the pages from before by new ones, so that whoever is late reads
 * zeroes. The map stays as it is. From the end, where readers come last; in a
 * large file some pages will do.
 */
static void renew_pages(struct race *r)
{
	size_t i, done = 0;

	for (i = r->nr; i-- > 0 && done < NR;) {
		if (!r->snapshot[i])
			continue;
		if (do_fallocate(r->fd, PUNCH, i * UNIT, UNIT) ||
		    do_fallocate(r->fd, 0, i * UNIT, UNIT))
			fails(r, "the sealed file can't be converted");
		done++;
	}
}

static void seal(struct race *r)
{
	double end = now() + 10;
	unsigned int tries = 0;

	do {
		r->seal = late_seal(r->fd);
		if (!r->seal && get(&r->holding))
			fails(r, "sealed while somebody held its pages");
	} while ((r->seal == -EBUSY || r->seal == -EINVAL) && !r->failure[0] && now() < end &&
		 (r->s->until_sealed || (r->s->never && ++tries < (r->s->tries ?: 20))));
	if (r->seal && r->s->until_sealed)
		fails(r, "no seal within 10 seconds");
	if (!r->seal) {
		set(&r->sealed, true);
		if (r->s->never)
			fails(r, "sealed, though mapped all the time");
		if (!r->s->converts) {
			read_map(r, r->snapshot);
			/* In every other round, to leave time for late pages, too */
			if (r->round & 1)
				renew_pages(r);
		}
	}
	set(&r->tried, true);
}

/* Who has won gets a later start, by smaller steps the nearer the mark. */
static void aim(struct race *r, bool sealed)
{
	long towards = sealed ? 1 : -1;

	if (!r->step)
		r->step = towards * (1 << 14);
	else if (r->step * towards > 0)
		r->step *= 2;
	else
		r->step /= -2;
	if (labs(r->step) > 1 << 22)
		r->step = towards * (1 << 22);
	if (labs(r->step) < 64)
		r->step = towards * 64;
	r->skew += towards * (long)rnd(labs(r->step));
}

static void one_round(struct race *r)
{
	size_t i;

	r->seal = 1;
	r->sealed = false;
	r->tried = false;
	r->refused = false;
	r->holding = false;
	r->pause = 0;
	r->map = NULL;
	r->fd = file_for_race(r);
	if (r->fd < 0) {
		fails(r, "no file: %s", strerror(-r->fd));
		return;
	}
	if (r->s->before)
		r->s->before(r);
	meet(r);
	start_together(r);
	spin(r->skew);
	seal(r);
	meet(r);
	if (r->refused && r->seal)
		fails(r, "somebody was refused, though there is no seal");
	if (r->seal && r->seal != -EBUSY && r->seal != -EINVAL && r->seal != -EPERM)
		fails(r, "F_ADD_SEALS: %s", strerror(-r->seal));
	if (r->s->after)
		r->s->after(r);

	/* Pages appear and vanish by fallocate() only. */
	if (!r->seal && !r->s->converts) {
		read_map(r, r->model);
		for (i = 0; i < r->nr; i++)
			if (r->model[i] != r->snapshot[i])
				fails(r, "page %zu has %s after the seal", i,
				      r->model[i] ? "appeared" : "vanished");
	}
	if (!r->seal)
		r->granted++;
	else
		r->busy++;
	aim(r, !r->seal);
	close(r->fd);
	r->round++;
}

TEST_F_TIMEOUT(race, seal, 300)
{
	struct race *r = &self->r;
	double end = now() + 1.5 * scale();

	/* Where it matters who wins, for as long as it takes to see both. */
	while ((now() < end || (variant->s.contest && r->round < 100)) && !r->failure[0])
		one_round(r);
	EXPECT_STREQ("", r->failure)
		TH_LOG("in round %u", r->round);
	TH_LOG("%u rounds: %u times sealed, %u times refused", r->round, r->granted, r->busy);
	if (variant->s.contend == contend_collapse)
		EXPECT_LT(0, r->collapsed)
			TH_LOG("nothing was ever collapsed");
	/* Else it was no race. One processor alone can't hold one. */
	if (variant->s.contest && sysconf(_SC_NPROCESSORS_ONLN) > 1) {
		EXPECT_LT(0, r->granted);
		EXPECT_LT(0, r->busy);
	}
}

STORE_HARNESS_MAIN
