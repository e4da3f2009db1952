// SPDX-License-Identifier: GPL-2.0
/*
 * Inaccessible memfds and the pool of huge pages: what is taken from it and
 * given back, an empty pool, one that shrinks, reservations, limits of control
 * groups, and where the memory comes from. On 2 MiB pages, or with "gigantic"
 * as the argument on 1 GiB pages, which have to be there, two at least.
 *
 * What calls answer, page by page, is the subject of inaccessible_test.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <linux/memfd.h>
#include <linux/mempolicy.h>

#include "../kselftest_harness.h"
#include "inaccessible_common.h"

#define POOLS	"/sys/kernel/mm/hugepages/"
#define MANY	64	/* as many as a model has room for */

#define GIGANTIC	(UNIT > HUGE)

static const char *pool_path(const char *file)
{
	static char path[128];

	snprintf(path, sizeof(path), POOLS "hugepages-%zukB/%s", UNIT >> 10, file);
	return path;
}

static long pool(const char *which)
{
	char file[32];

	snprintf(file, sizeof(file), "%s_hugepages", which);
	return knob_number(pool_path(file));
}

static int pool_resize(long nr)
{
	return write_file(pool_path("nr_hugepages"), "%ld", nr);
}

struct counters {
	long total, free, reserved, surplus;
};

static struct counters counters(void)
{
	struct counters c = { pool("nr"), pool("free"), pool("resv"), pool("surplus") };

	return c;
}

static bool __counters_are(struct counters want, const char *file, int line)
{
	struct counters got = counters();

	if (!memcmp(&got, &want, sizeof(got)))
		return true;
	fprintf(stderr,
		"# %s:%d: total %ld free %ld reserved %ld surplus %ld, expected %ld %ld %ld %ld\n",
		file, line, got.total, got.free, got.reserved, got.surplus, want.total, want.free,
		want.reserved, want.surplus);
	return false;
}

#define counters_are(...) \
	__counters_are((struct counters){ __VA_ARGS__ }, __FILE__, __LINE__)

/*
 * A pool that nobody else uses, of nr pages: as many as there are if they are
 * gigantic, as those can't be had later.
 */
FIXTURE(pool)
{
	int fd;
	long nr;
	struct counters before;
	unsigned char model[2 * MANY];
};

FIXTURE_SETUP(pool)
{
	const char *lacking = mfd_missing();

	self->fd = -1;
	if (!lacking && pool("free") != pool("nr"))
		lacking = "a pool that nobody else uses";
	if (!lacking && !GIGANTIC && (knob_set(pool_path("nr_hugepages"), "8") || pool("nr") != 8))
		lacking = "8 huge pages";
	self->nr = pool("nr");
	if (!lacking && (self->nr < 2 || self->nr > MANY))
		lacking = "2 to 64 huge pages";
	if (lacking)
		SKIP(return, "%s", lacking);
	self->before = counters();
	self->fd = mfd_sealed(0, 2 * self->nr * UNIT);
	ASSERT_LE(0, self->fd);
	rnd_init();
}

/* Whatever has happened, in the end it is as if nothing had. */
FIXTURE_TEARDOWN(pool)
{
	if (self->fd >= 0) {
		close(self->fd);
		EXPECT_TRUE(__counters_are(self->before, __FILE__, __LINE__));
	}
	knobs_restore();
}

static int convert(int fd, unsigned char *model, bool private, unsigned int from, unsigned int nr)
{
	int err = do_fallocate(fd, private ? 0 : PUNCH, from * UNIT, nr * UNIT);

	if (!err)
		model_set(model, from, nr, private);
	return err;
}

#define differs() model_differs(self->fd, self->model, 2 * self->nr)

TEST_F(pool, page_by_page)
{
	const long nr = self->nr;
	long i;

	/* Nothing is set aside for it. */
	EXPECT_TRUE(counters_are(nr, nr, 0, 0));
	for (i = 0; i < nr; i++) {
		ASSERT_EQ(0, convert(self->fd, self->model, true, 2 * i, 1));
		EXPECT_TRUE(counters_are(nr, nr - 1 - i, 0, 0));
	}
	EXPECT_FALSE(differs());
	/* What is there already costs nothing. */
	for (i = 0; i < nr; i++)
		ASSERT_EQ(0, convert(self->fd, self->model, true, 2 * i, 1));
	EXPECT_TRUE(counters_are(nr, 0, 0, 0));
	for (i = 0; i < nr; i++) {
		ASSERT_EQ(0, convert(self->fd, self->model, false, 2 * i, 2));
		EXPECT_TRUE(counters_are(nr, i + 1, 0, 0));
	}
	EXPECT_FALSE(differs());
}

/* The page size of the machine is not good enough, nor is a smaller huge page. */
TEST_F(pool, unaligned)
{
	const size_t smaller = GIGANTIC ? HUGE : PAGE;
	struct file_state before;
	unsigned int i;

	ASSERT_EQ(0, convert(self->fd, self->model, true, 0, 1));
	file_state_get(self->fd, &before);
	for (i = 0; i < 2; i++) {
		int mode = i ? PUNCH : 0;

		EXPECT_EQ(-EINVAL, do_fallocate(self->fd, mode, 0, smaller));
		EXPECT_EQ(-EINVAL, do_fallocate(self->fd, mode, smaller, UNIT));
		EXPECT_EQ(-EINVAL, do_fallocate(self->fd, mode, UNIT, UNIT + smaller));
		EXPECT_EQ(-EINVAL, do_fallocate(self->fd, mode, UNIT - smaller, smaller));
	}
	EXPECT_FALSE(file_state_changed(self->fd, &before));
	EXPECT_TRUE(counters_are(self->nr, self->nr - 1, 0, 0));
}

/* In order from the start, and what was there stays. */
TEST_F(pool, empty)
{
	const long nr = self->nr;

	ASSERT_EQ(0, convert(self->fd, self->model, true, nr / 2, 1));
	EXPECT_EQ(-ENOSPC, do_fallocate(self->fd, 0, 0, 2 * nr * UNIT));
	model_set(self->model, 0, nr, 1);
	EXPECT_FALSE(differs());
	EXPECT_TRUE(counters_are(nr, 0, 0, 0));

	/* Nothing more is to be had, until something is given back. */
	EXPECT_EQ(-ENOSPC, do_fallocate(self->fd, 0, 0, 2 * nr * UNIT));
	EXPECT_EQ(-ENOSPC, do_fallocate(self->fd, 0, nr * UNIT, UNIT));
	EXPECT_EQ(0, do_fallocate(self->fd, 0, 0, nr * UNIT));
	EXPECT_FALSE(differs());
	ASSERT_EQ(0, convert(self->fd, self->model, false, 0, 1));
	ASSERT_EQ(0, convert(self->fd, self->model, true, 2 * nr - 1, 1));
	EXPECT_EQ(-ENOSPC, do_fallocate(self->fd, 0, 0, UNIT));
	EXPECT_FALSE(differs());
	EXPECT_TRUE(counters_are(nr, 0, 0, 0));
}

/* A page that has been shared may be somebody else's when it is asked for. */
TEST_F(pool, taken_by_another)
{
	const long nr = self->nr;
	int other = mfd_sealed(0, UNIT);

	ASSERT_LE(0, other);
	ASSERT_EQ(0, convert(self->fd, self->model, true, 0, nr));
	EXPECT_EQ(-ENOSPC, do_fallocate(other, 0, 0, UNIT));
	EXPECT_EQ(0, blocks_pages(other));
	ASSERT_EQ(0, convert(self->fd, self->model, false, 1, 1));
	EXPECT_EQ(0, do_fallocate(other, 0, 0, UNIT));
	EXPECT_EQ(-ENOSPC, do_fallocate(self->fd, 0, UNIT, UNIT));
	EXPECT_FALSE(differs());
	close(other);
	ASSERT_EQ(0, convert(self->fd, self->model, true, 1, 1));
	EXPECT_FALSE(differs());
}

TEST_F(pool, of_another_reserved)
{
	const long nr = self->nr;
	int other = mfd_ordinary(0, (nr - 1) * UNIT);
	void *p;

	ASSERT_LE(0, other);
	p = mmap(NULL, (nr - 1) * UNIT, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
	ASSERT_NE(MAP_FAILED, p);
	EXPECT_TRUE(counters_are(nr, nr, nr - 1, 0));
	EXPECT_EQ(-ENOSPC, do_fallocate(self->fd, 0, 0, 2 * UNIT));
	self->model[0] = 1;
	EXPECT_FALSE(differs());
	EXPECT_TRUE(counters_are(nr, nr - 1, nr - 1, 0));
	/* They can rely on it. */
	*(char *)p = 1;
	munmap(p, (nr - 1) * UNIT);
	close(other);
	ASSERT_EQ(0, convert(self->fd, self->model, true, 0, nr));
	EXPECT_FALSE(differs());
}

/* What a mapping has reserved before the seal is there for conversions. */
TEST_F(pool, own_reserved)
{
	const long nr = self->nr;
	int fd = mfd_ordinary(0, nr * UNIT);
	char *p;

	if (late_seal_missing())
		SKIP(return, "%s", late_seal_missing());
	ASSERT_LE(0, fd);
	p = mmap(NULL, nr * UNIT, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	p[0] = 1;
	munmap(p, nr * UNIT);
	EXPECT_TRUE(counters_are(nr, nr - 1, nr - 1, 0));
	ASSERT_EQ(0, late_seal(fd));
	EXPECT_TRUE(counters_are(nr, nr - 1, nr - 1, 0));
	EXPECT_EQ(-ENOSPC, do_fallocate(self->fd, 0, 0, UNIT));
	EXPECT_EQ(0, do_fallocate(fd, 0, 0, nr * UNIT));
	EXPECT_TRUE(counters_are(nr, 0, 0, 0));
	/* It is used up, then: a hole gives its page to all. */
	EXPECT_EQ(0, do_fallocate(fd, PUNCH, UNIT, (nr - 1) * UNIT));
	EXPECT_TRUE(counters_are(nr, nr - 1, 0, 0));
	EXPECT_EQ(0, convert(self->fd, self->model, true, 0, 1));
	close(fd);
	EXPECT_TRUE(counters_are(nr, nr - 1, 0, 0));
}

/* Reservations and pages past the size, which only an ordinary file can have */
TEST_F(pool, past_the_size)
{
	const long nr = self->nr;
	int fd = mfd_ordinary(0, UNIT);
	void *p;

	if (late_seal_missing())
		SKIP(return, "%s", late_seal_missing());
	ASSERT_LE(0, fd);
	/* A mapping that can't be written to does not make the file grow. */
	p = mmap(NULL, nr * UNIT, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	munmap(p, nr * UNIT);
	ASSERT_EQ(0, do_fallocate(fd, FALLOC_FL_KEEP_SIZE, (nr - 1) * UNIT, UNIT));
	EXPECT_TRUE(counters_are(nr, nr - 1, nr - 1, 0));
	ASSERT_EQ(0, late_seal(fd));
	EXPECT_EQ(0, blocks_pages(fd));
	EXPECT_TRUE(counters_are(nr, nr, 1, 0));
	close(fd);
}

/* The administrator takes pages away: those in use go when they are freed. */
TEST_F(pool, shrunk)
{
	const long nr = self->nr, half = nr / 2;

	if (GIGANTIC)
		SKIP(return, "a pool that can grow again");
	ASSERT_EQ(0, convert(self->fd, self->model, true, 0, half));
	ASSERT_EQ(0, pool_resize(1));
	EXPECT_TRUE(counters_are(half, 0, 0, half - 1));
	EXPECT_EQ(-ENOSPC, do_fallocate(self->fd, 0, 0, 2 * nr * UNIT));
	EXPECT_FALSE(differs());
	ASSERT_EQ(0, convert(self->fd, self->model, false, 0, half - 1));
	EXPECT_TRUE(counters_are(1, 0, 0, 0));
	EXPECT_FALSE(differs());
	ASSERT_EQ(0, pool_resize(nr));
	ASSERT_EQ(0, convert(self->fd, self->model, true, 0, nr - 1));
	EXPECT_FALSE(differs());
}

struct all {
	pthread_t thread;
	int fd;
	long nr;
};

static void *fallocate_all(void *arg)
{
	struct all *all = arg;

	return (void *)(long)do_fallocate(all->fd, 0, 0, all->nr * UNIT);
}

/* While a call is under way: it gets what there is, and no page twice. */
TEST_F(pool, shrinks_meanwhile)
{
	struct all all = { .nr = MANY };
	unsigned int tries, cut = 0;
	void *ret;

	if (GIGANTIC)
		SKIP(return, "a pool that can grow again");
	for (tries = 0; tries < 30 && !cut; tries++) {
		long got;

		ASSERT_EQ(0, pool_resize(MANY));
		ASSERT_EQ(MANY, pool("nr"));
		all.fd = mfd_sealed(0, MANY * UNIT);
		ASSERT_LE(0, all.fd);
		ASSERT_EQ(0, pthread_create(&all.thread, NULL, fallocate_all, &all));
		while (blocks_pages(all.fd) < 1 + (long)tries % 8)
			;
		ASSERT_EQ(0, pool_resize(0));
		pthread_join(all.thread, &ret);
		got = blocks_pages(all.fd);
		memset(self->model, 0, sizeof(self->model));
		model_set(self->model, 0, got, 1);
		EXPECT_FALSE(model_differs(all.fd, self->model, MANY));
		EXPECT_TRUE(counters_are(got, 0, 0, got));
		EXPECT_EQ(got == MANY ? 0 : -ENOSPC, (long)ret);
		cut += got < MANY;
		close(all.fd);
		EXPECT_TRUE(counters_are(0, 0, 0, 0));
	}
	EXPECT_LT(0, cut)
		TH_LOG("the pool was never empty before the call had ended");
	ASSERT_EQ(0, pool_resize(self->nr));
}

/* Pages beyond the pool, if the administrator allows some */
TEST_F(pool, overcommitted)
{
	const long nr = self->nr;

	if (GIGANTIC)
		SKIP(return, "huge pages that can be had at any time");
	ASSERT_EQ(0, knob_set(pool_path("nr_overcommit_hugepages"), "2"));
	EXPECT_EQ(-ENOSPC, do_fallocate(self->fd, 0, 0, 2 * nr * UNIT));
	model_set(self->model, 0, nr + 2, 1);
	EXPECT_FALSE(differs());
	EXPECT_TRUE(counters_are(nr + 2, 0, 0, 2));
	ASSERT_EQ(0, convert(self->fd, self->model, false, 0, 3));
	EXPECT_TRUE(counters_are(nr, 1, 0, 0));
	ASSERT_EQ(0, convert(self->fd, self->model, true, 0, 2));
	EXPECT_TRUE(counters_are(nr + 1, 0, 0, 1));
	EXPECT_FALSE(differs());
}

/* The frames of the pool, seen by way of an ordinary file that has all of them */
static bool pool_frames(long nr, uint64_t *pfn)
{
	int fd = mfd_ordinary(0, nr * UNIT);
	char *p;
	long i;

	p = mmap(NULL, nr * UNIT, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) {
		close(fd);
		return false;
	}
	for (i = 0; i < nr; i++) {
		memset(p + i * UNIT, 0x5a, PAGE);
		memset(p + i * UNIT + UNIT / 2, 0x5a, PAGE);
		memset(p + (i + 1) * UNIT - PAGE, 0x5a, PAGE);
		pfn[i] = pfn_of(p + i * UNIT);
	}
	munmap(p, nr * UNIT);
	close(fd);
	return pfn[0];
}

/* Is the frame, at both ends and in the middle, full of this byte? */
static bool frame_is(int kcore, uint64_t pfn, unsigned char byte)
{
	const uint64_t at[] = { 0, UNIT / PAGE / 2, UNIT / PAGE - 1 };
	unsigned char buf[4096];
	unsigned int i, j;

	for (i = 0; i < ARRAY_SIZE(at); i++) {
		if (kcore_read(kcore, pfn + at[i], buf))
			return false;
		for (j = 0; j < sizeof(buf); j++)
			if (buf[j] != byte)
				return false;
	}
	return true;
}

/* Pages of the pool have been in use: what they hold is for nobody to see. */
TEST_F(pool, pages_are_zeroed)
{
	const long nr = self->nr;
	uint64_t pfn[MANY];
	int kcore = kcore_open();
	long i;

	if (kcore < 0)
		SKIP(return, "/proc/kcore (CONFIG_PROC_KCORE)");
	if (!pool_frames(nr, pfn))
		SKIP(return, "/proc/self/pagemap (CONFIG_PROC_PAGE_MONITOR)");
	for (i = 0; i < nr; i++)
		ASSERT_TRUE(frame_is(kcore, pfn[i], 0x5a));
	ASSERT_EQ(0, convert(self->fd, self->model, true, 0, nr));
	for (i = 0; i < nr; i++)
		EXPECT_TRUE(frame_is(kcore, pfn[i], 0))
			TH_LOG("page %ld of the pool", i);
	close(kcore);
}

/* ---- sizes ---- */

TEST(sizes_of_huge_pages)
{
	const char *lacking = mfd_missing();
	unsigned int log, made = 0;
	char path[128];

	if (lacking)
		SKIP(return, "%s", lacking);
	for (log = 1; log < 64; log++) {
		int fd = mfd_create(MFD_INACCESSIBLE | MFD_HUGETLB | log << MFD_HUGE_SHIFT);

		snprintf(path, sizeof(path), POOLS "hugepages-%lukB", (1UL << log) >> 10);
		if (log < 10 || access(path, F_OK)) {
			EXPECT_EQ(-ENODEV, fd)
				TH_LOG("huge pages of 2^%u bytes", log);
			continue;
		}
		ASSERT_LE(0, fd);
		made++;
		/* The unit of the file is that size. */
		if (log < 40) {
			EXPECT_EQ(-EINVAL, do_ftruncate(fd, 1UL << (log - 1)));
			EXPECT_EQ(0, do_ftruncate(fd, 1UL << log));
		}
		close(fd);
	}
	EXPECT_LT(0, made);
}

/* ---- long calls ---- */

static unsigned int alarms;

static void on_alarm(int sig)
{
	alarms++;
}

/* It ends at a page, and can be resumed there. */
TEST_F(pool, signal)
{
	struct sigaction act = { .sa_handler = on_alarm };
	long usec = 10000, got = 0;
	int fd, err = 0, tries;

	if (GIGANTIC)
		SKIP(return, "a pool that can grow");
	ASSERT_EQ(0, pool_resize(MANY));
	fd = mfd_sealed(0, MANY * UNIT);
	ASSERT_LE(0, fd);
	sigaction(SIGALRM, &act, NULL);
	for (tries = 0; tries < 50 && err != -EINTR; tries++) {
		struct itimerval timer = { .it_value.tv_usec = usec };

		ASSERT_EQ(0, do_fallocate(fd, PUNCH, 0, MANY * UNIT));
		setitimer(ITIMER_REAL, &timer, NULL);
		err = do_fallocate(fd, 0, 0, MANY * UNIT);
		memset(&timer, 0, sizeof(timer));
		setitimer(ITIMER_REAL, &timer, NULL);
		usec = err ? usec + usec / 2 : usec / 2 + 100;
	}
	EXPECT_EQ(-EINTR, err);
	got = lseek(fd, 0, SEEK_HOLE) / UNIT;
	EXPECT_LT(0, got);
	EXPECT_GT(MANY, got);
	model_set(self->model, 0, got, 1);
	EXPECT_FALSE(model_differs(fd, self->model, MANY));
	EXPECT_EQ(0, convert(fd, self->model, true, 0, MANY));
	EXPECT_FALSE(model_differs(fd, self->model, MANY));
	close(fd);
	ASSERT_EQ(0, pool_resize(self->nr));
}

/* Others get at the file meanwhile, and punch a hole into what is done. */
TEST_F(pool, lets_others_in)
{
	struct all all = { .nr = MANY };
	unsigned int tries, punched = 0;
	void *ret;

	if (GIGANTIC)
		SKIP(return, "a pool that can grow");
	ASSERT_EQ(0, pool_resize(MANY));
	all.fd = mfd_sealed(0, MANY * UNIT);
	ASSERT_LE(0, all.fd);
	for (tries = 0; tries < 20 && !punched; tries++) {
		ASSERT_EQ(0, do_fallocate(all.fd, PUNCH, 0, MANY * UNIT));
		model_set(self->model, 0, MANY, 1);
		ASSERT_EQ(0, pthread_create(&all.thread, NULL, fallocate_all, &all));
		while (blocks_pages(all.fd) < 2)
			;
		EXPECT_EQ(0, convert(all.fd, self->model, false, 0, 1));
		punched += lseek(all.fd, UNIT, SEEK_HOLE) / UNIT < MANY;
		pthread_join(all.thread, &ret);
		EXPECT_EQ(NULL, ret);
		EXPECT_FALSE(model_differs(all.fd, self->model, MANY));
	}
	EXPECT_LT(0, punched)
		TH_LOG("no hole was punched in the middle of a call");
	close(all.fd);
	ASSERT_EQ(0, pool_resize(self->nr));
}

/* ---- threads ---- */

#define THREADS	4

struct worker {
	pthread_t thread;
	int fd;
	unsigned int id, seed;
	bool *stop;
	unsigned char model[2 * MANY];
	unsigned int empty;
	char failure[100];
};

/* Own pages only, though from a pool that does not suffice for all */
static void *work_on_own_pages(void *arg)
{
	struct worker *w = arg;

	while (!w->failure[0] && !__atomic_load_n(w->stop, __ATOMIC_RELAXED)) {
		unsigned int page = rand_r(&w->seed) % 4 * THREADS + w->id;
		bool private = rand_r(&w->seed) % 2;
		int err = convert(w->fd, w->model, private, page, 1);

		if (err == -ENOSPC && private)
			w->empty++;
		else if (err)
			snprintf(w->failure, sizeof(w->failure), "page %u: %s", page,
				 strerror(-err));
		if ((lseek(w->fd, page * UNIT, SEEK_DATA) == (off_t)(page * UNIT)) !=
		    w->model[page])
			snprintf(w->failure, sizeof(w->failure), "page %u is not as left", page);
	}
	return NULL;
}

TEST_F(pool, threads)
{
	struct worker worker[THREADS] = { 0 };
	unsigned int i, j, empty = 0;
	bool stop = false;

	if (GIGANTIC)
		SKIP(return, "huge pages that are zeroed in no time");
	for (i = 0; i < THREADS; i++) {
		worker[i].fd = self->fd;
		worker[i].id = i;
		worker[i].seed = rnd(INT_MAX);
		worker[i].stop = &stop;
		ASSERT_EQ(0, pthread_create(&worker[i].thread, NULL, work_on_own_pages,
					    &worker[i]));
	}
	usleep(2000000 * scale());
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < THREADS; i++) {
		pthread_join(worker[i].thread, NULL);
		EXPECT_STREQ("", worker[i].failure);
		empty += worker[i].empty;
		for (j = 0; j < 2 * MANY; j++)
			self->model[j] |= worker[i].model[j];
	}
	EXPECT_LT(0, empty);
	EXPECT_FALSE(differs());
	EXPECT_TRUE(counters_are(self->nr, self->nr - blocks_pages(self->fd), 0, 0));
}

/* ---- control groups ---- */

static int fallocate_in_cgroup(struct memcg *cg, int fd, long nr)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		return -errno;
	if (!pid) {
		int err;

		if (memcg_enter(cg))
			_exit(255);
		err = -do_fallocate(fd, 0, 0, nr * UNIT);
		memcg_leave(cg);
		_exit(err);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -EINTR;
	return -WEXITSTATUS(status);
}

TEST_F(pool, limit_of_hugetlb_cgroup)
{
	const char *lacking, *size = GIGANTIC ? "1GB" : "2MB";
	char max[32], current[32], rsvd[32], events[32];
	const long limit = self->nr / 2;
	struct memcg cg;

	snprintf(max, sizeof(max), "hugetlb.%s.max", size);
	snprintf(current, sizeof(current), "hugetlb.%s.current", size);
	snprintf(rsvd, sizeof(rsvd), "hugetlb.%s.rsvd.current", size);
	snprintf(events, sizeof(events), "hugetlb.%s.events", size);
	lacking = memcg_create(&cg);
	if (!lacking && cgroup_controller("+hugetlb"))
		lacking = "the hugetlb controller of cgroup2 (CONFIG_CGROUP_HUGETLB)";
	if (lacking)
		SKIP(return, "%s", lacking);
	ASSERT_EQ(0, memcg_write(&cg, max, "%lu", limit * UNIT));
	EXPECT_EQ(-ENOSPC, fallocate_in_cgroup(&cg, self->fd, self->nr));
	model_set(self->model, 0, limit, 1);
	EXPECT_FALSE(differs());
	EXPECT_EQ(limit * (long)UNIT, memcg_stat(&cg, current, NULL));
	EXPECT_EQ(limit * (long)UNIT, memcg_stat(&cg, rsvd, NULL));
	EXPECT_LT(0, memcg_stat(&cg, events, "max"));
	EXPECT_TRUE(counters_are(self->nr, self->nr - limit, 0, 0));
	/* At the cost of another there is more. */
	EXPECT_EQ(0, convert(self->fd, self->model, true, limit, 1));
	EXPECT_EQ(limit * (long)UNIT, memcg_stat(&cg, current, NULL));
	EXPECT_EQ(0, convert(self->fd, self->model, false, 0, limit + 1));
	EXPECT_EQ(0, memcg_stat(&cg, current, NULL));
	EXPECT_EQ(0, memcg_stat(&cg, rsvd, NULL));
	memcg_destroy(&cg);
}

/* Memory cgroups take huge pages into account if they are told to. */
TEST_F(pool, limit_of_memory_cgroup)
{
	const long limit = self->nr / 2;
	const char *lacking;
	struct memcg cg;

	lacking = memcg_create(&cg);
	if (!lacking && cgroup_remount("memory_hugetlb_accounting"))
		lacking = "memory_hugetlb_accounting of cgroup2";
	if (lacking)
		SKIP(return, "%s", lacking);
	/* The task itself needs something, too. */
	ASSERT_EQ(0, memcg_write(&cg, "memory.max", "%lu", limit * UNIT + UNIT / 2));
	EXPECT_EQ(-ENOMEM, fallocate_in_cgroup(&cg, self->fd, self->nr));
	model_set(self->model, 0, limit, 1);
	EXPECT_FALSE(differs());
	EXPECT_LE(limit * (long)UNIT, memcg_stat(&cg, "memory.current", NULL));
	EXPECT_EQ(0, memcg_stat(&cg, "memory.events", "oom_kill"));
	EXPECT_TRUE(counters_are(self->nr, self->nr - limit, 0, 0));
	EXPECT_EQ(0, convert(self->fd, self->model, false, 0, limit));
	EXPECT_GT((long)UNIT, memcg_stat(&cg, "memory.current", NULL));
	cgroup_remount("");
	memcg_destroy(&cg);
}

static int stay_on_this_cpu(void)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	return sched_setaffinity(0, sizeof(one), &one);
}

/* Fill a cgroup to the last page, by what has nobody killed when it is full. */
static int fill_cgroup(void)
{
	const off_t size = 1 << 30;
	int fd = mfd_create(MFD_INACCESSIBLE), err = 0;
	off_t off;

	if (fd < 0 || do_ftruncate(fd, size))
		return -errno;
	for (off = 0; off < size && !err; off += PAGE)
		err = do_fallocate(fd, 0, off, PAGE);
	return err == -ENOMEM ? 0 : -EINVAL;
}

/*
 * Nor is anybody killed for a node of the file's tree, a few hundred bytes, of
 * which a page that is far from others needs a new one.
 */
TEST_F(pool, limit_leaves_no_node)
{
	const off_t distance = 8 * UNIT;
	const char *lacking;
	struct memcg cg;
	int fd, status;
	pid_t pid;

	if (GIGANTIC)
		SKIP(return, "huge pages by the dozen");
	lacking = memcg_create(&cg);
	if (!lacking && (knob_set(pool_path("nr_hugepages"), "24") || pool("nr") != 24))
		lacking = "24 huge pages";
	if (lacking)
		SKIP(return, "%s", lacking);
	fd = mfd_sealed(0, 24 * distance);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, memcg_write(&cg, "memory.max", "%d", 16 << 20));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		int err, i;

		/* All that it touches is there before. Each CPU may have charged in advance. */
		if (stay_on_this_cpu() || memcg_enter(&cg) || do_fallocate(fd, 0, 0, UNIT) ||
		    fill_cgroup())
			_exit(1);
		for (i = 1, err = 0; i < 24 && !err; i++)
			err = do_fallocate(fd, 0, i * distance, UNIT);
		_exit(err == -ENOMEM ? 0 : 2);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status) TH_LOG("exit code 2: no ENOMEM; else the signal that has killed it");
	EXPECT_EQ(0, memcg_stat(&cg, "memory.events", "oom_kill"));
	close(fd);
	memcg_destroy(&cg);
	EXPECT_EQ(0, pool_resize(self->nr));
}

/* ---- where the pages come from ---- */

static long free_on_node(int node)
{
	char path[128];

	snprintf(path, sizeof(path),
		 "/sys/devices/system/node/node%d/hugepages/hugepages-%zukB/free_hugepages", node,
		 UNIT >> 10);
	return knob_number(path);
}

/* Nobody can mbind() the file, so what counts is the policy of the task. */
FIXTURE(nodes)
{
	int fd;
};

FIXTURE_SETUP(nodes)
{
	const char *lacking = mfd_missing();

	if (lacking)
		SKIP(return, "%s", lacking);
	if (free_on_node(0) < 2 || free_on_node(1) < 2)
		SKIP(return, "two nodes with two huge pages each");
	self->fd = mfd_sealed(0, 8 * UNIT);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(nodes)
{
	close(self->fd);
}

TEST_F(nodes, policy_of_the_task)
{
	long first, second;
	unsigned long mask;
	int node;

	for (node = 0; node < 2; node++) {
		long here = free_on_node(node), there = free_on_node(!node);

		mask = 1UL << node;
		ASSERT_EQ(0, syscall(__NR_set_mempolicy, MPOL_BIND, &mask, 8 * sizeof(mask)));
		ASSERT_EQ(0, do_fallocate(self->fd, 0, 0, 2 * UNIT));
		EXPECT_EQ(here - 2, free_on_node(node));
		EXPECT_EQ(there, free_on_node(!node));
		ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, 0, 2 * UNIT));
		EXPECT_EQ(here, free_on_node(node));
	}
	mask = 3;
	first = free_on_node(0);
	second = free_on_node(1);
	ASSERT_EQ(0, syscall(__NR_set_mempolicy, MPOL_INTERLEAVE, &mask, 8 * sizeof(mask)));
	ASSERT_EQ(0, do_fallocate(self->fd, 0, 0, 2 * UNIT));
	EXPECT_EQ(first - 1, free_on_node(0));
	EXPECT_EQ(second - 1, free_on_node(1));
}

/*
 * Gigantic pages that were cut out of CMA at run time: with hugetlb_cma=, and
 * no others. Guest memory can't be moved, so it must not be there.
 */
TEST(not_from_cma)
{
	const char *lacking = mfd_missing();
	int fd, other;

	if (!lacking && (!GIGANTIC || pool("nr") ||
			 knob_set(pool_path("nr_hugepages"), "1") || pool("free") != 1))
		lacking = "a page of 1 GiB from CMA (hugetlb_cma=)";
	if (lacking)
		SKIP(return, "%s", lacking);
	fd = mfd_sealed(0, UNIT);
	ASSERT_LE(0, fd);
	EXPECT_EQ(-ENOSPC, do_fallocate(fd, 0, 0, UNIT));
	EXPECT_EQ(0, blocks_pages(fd));
	EXPECT_EQ(1, pool("free"));

	/* Everybody else can have it, and then can't make it a guest's. */
	other = mfd_ordinary(0, UNIT);
	ASSERT_LE(0, other);
	EXPECT_EQ(0, do_fallocate(other, 0, 0, UNIT));
	EXPECT_EQ(0, pool("free"));
	EXPECT_EQ(-EBUSY, late_seal(other));
	EXPECT_EQ(0, fcntl(other, F_GET_SEALS));
	EXPECT_EQ(1, blocks_pages(other));
	close(other);
	EXPECT_EQ(1, pool("free"));
	close(fd);
	knobs_restore();
}

int main(int argc, char **argv)
{
	store_select(argc, argv);
	if (!ON_HUGETLBFS)
		store = (struct store){ MFD_HUGETLB | MFD_HUGE_2MB, 2UL << 20 };
	return test_harness_run(argc, argv);
}
