// SPDX-License-Identifier: GPL-2.0
/*
 * Which pages of an inaccessible memfd are allocated: a page is private exactly
 * when it is, so fallocate() has to be exact, whatever the size of the folios,
 * whoever else is at work on the file, and wherever memory runs out.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/syscall.h>
#include <linux/memfd.h>
#include <linux/mempolicy.h>

#include "../kselftest_harness.h"
#include "inaccessible_common.h"

#define THP "/sys/kernel/mm/transparent_hugepage/"

/* ---- exactly the range that was asked for ---- */

/* The window: two huge pages */
#define NR	1024

FIXTURE(thp)
{
	int fd;
	unsigned char model[NR];
};

FIXTURE_VARIANT(thp)
{
	const char *global, *size_2m, *size_64k;
	bool huge;
};

FIXTURE_VARIANT_ADD(thp, never)
{
	.global = "never",
};

FIXTURE_VARIANT_ADD(thp, always)
{
	.global = "always", .huge = true,
};

FIXTURE_VARIANT_ADD(thp, within_size)
{
	.global = "within_size", .huge = true,
};

/* There is no mapping that could be advised: the seal is the advice. */
FIXTURE_VARIANT_ADD(thp, advise)
{
	.global = "advise", .huge = true,
};

FIXTURE_VARIANT_ADD(thp, force)
{
	.global = "force", .huge = true,
};

FIXTURE_VARIANT_ADD(thp, deny)
{
	.global = "deny",
};

FIXTURE_VARIANT_ADD(thp, size_2m_advise)
{
	.global = "never", .size_2m = "advise", .huge = true,
};

FIXTURE_VARIANT_ADD(thp, size_2m_never)
{
	.global = "always", .size_2m = "never",
};

FIXTURE_VARIANT_ADD(thp, size_64k_always)
{
	.global = "never", .size_64k = "always",
};

FIXTURE_VARIANT_ADD(thp, size_64k_advise)
{
	.global = "never", .size_2m = "never", .size_64k = "advise",
};

FIXTURE_VARIANT_ADD(thp, both_sizes)
{
	.global = "always", .size_2m = "always", .size_64k = "always", .huge = true,
};

FIXTURE_SETUP(thp)
{
	const char *lacking = mfd_missing();

	if (lacking)
		SKIP(return, "%s", lacking);
	if (knob_set(SHMEM_ENABLED, variant->global))
		SKIP(return, SHMEM_ENABLED " (CONFIG_TRANSPARENT_HUGEPAGE)");
	if ((variant->size_2m &&
	     knob_set(THP "hugepages-2048kB/shmem_enabled", variant->size_2m)) ||
	    (variant->size_64k &&
	     knob_set(THP "hugepages-64kB/shmem_enabled", variant->size_64k))) {
		knobs_restore();
		SKIP(return, "shmem_enabled for each size of huge pages");
	}
	self->fd = mfd_sealed(0, NR * PAGE);
	ASSERT_LE(0, self->fd);
	rnd_init();
}

FIXTURE_TEARDOWN(thp)
{
	knobs_restore();
	close(self->fd);
}

/* Where things happen: the edges of pages, of folios of any size, of the file */
static const unsigned int edge[] = {
	0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 255, 256, 257, 496, 511, 512, 513, 528, 640, 767, 768,
	1007, 1008, 1022, 1023, 1024,
};

static int convert(int fd, unsigned char *model, bool private, unsigned int from, unsigned int nr)
{
	int err = do_fallocate(fd, private ? 0 : PUNCH, from * PAGE, nr * PAGE);

	if (!err)
		model_set(model, from, nr, private);
	return err;
}

TEST_F(thp, huge_pages_are_used)
{
	long before = meminfo_kb("ShmemHugePages"), got;

	ASSERT_EQ(0, convert(self->fd, self->model, true, 0, NR));
	got = meminfo_kb("ShmemHugePages") - before;
	EXPECT_EQ(variant->huge ? (long)(NR * PAGE >> 10) : 0, got);
	EXPECT_FALSE(model_differs(self->fd, self->model, NR));
	ASSERT_EQ(0, convert(self->fd, self->model, false, 0, NR));
	EXPECT_EQ(before, meminfo_kb("ShmemHugePages"));
	EXPECT_FALSE(model_differs(self->fd, self->model, NR));
}

/* Wherever a range begins, what fits into it is used. */
TEST_F(thp, unaligned_beginning)
{
	static const char folios[] = THP "hugepages-64kB/stats/shmem_alloc";
	long before = knob_number(folios);

	ASSERT_EQ(0, convert(self->fd, self->model, true, 1, 5 * 16));
	EXPECT_EQ(variant->size_64k ? 4 : 0, knob_number(folios) - before);
	EXPECT_FALSE(model_differs(self->fd, self->model, NR));
}

TEST_F(thp, allocate_every_range)
{
	unsigned int i, j;

	for (i = 0; i < ARRAY_SIZE(edge); i++) {
		for (j = i + 1; j < ARRAY_SIZE(edge); j++) {
			unsigned int nr = edge[j] - edge[i];

			ASSERT_EQ(0, convert(self->fd, self->model, true, edge[i], nr));
			ASSERT_FALSE(model_differs(self->fd, self->model, NR))
				TH_LOG("allocated %u+%u", edge[i], nr);
			ASSERT_EQ(0, convert(self->fd, self->model, false, edge[i], nr));
			ASSERT_FALSE(model_differs(self->fd, self->model, NR))
				TH_LOG("punched %u+%u", edge[i], nr);
		}
	}
}

TEST_F(thp, allocate_every_page)
{
	unsigned int i;

	for (i = 0; i < NR; i++) {
		ASSERT_EQ(0, convert(self->fd, self->model, true, i, 1));
		/* Alone, with nothing before and nothing after it */
		if (i % 8 == 0 || i % 512 == 511)
			ASSERT_FALSE(model_differs(self->fd, self->model, NR))
				TH_LOG("allocated %u", i);
		ASSERT_EQ(1, blocks_pages(self->fd));
		ASSERT_EQ(0, convert(self->fd, self->model, false, i, 1));
		ASSERT_EQ(0, blocks_pages(self->fd));
	}
}

TEST_F(thp, punch_every_range)
{
	unsigned int i, j;

	/* The more often the folio is whole before the punch, the better. */
	for (i = 0; i < ARRAY_SIZE(edge); i++) {
		for (j = i + 1; j < ARRAY_SIZE(edge); j += 1 + rnd(3)) {
			unsigned int nr = edge[j] - edge[i];

			ASSERT_EQ(0, convert(self->fd, self->model, false, 0, NR));
			ASSERT_EQ(0, convert(self->fd, self->model, true, 0, NR));
			ASSERT_EQ(0, convert(self->fd, self->model, false, edge[i], nr));
			ASSERT_FALSE(model_differs(self->fd, self->model, NR))
				TH_LOG("punched %u+%u", edge[i], nr);
		}
	}
}

TEST_F(thp, checkerboards)
{
	unsigned int step, i;

	for (step = 1; step <= 256; step *= 4) {
		ASSERT_EQ(0, convert(self->fd, self->model, true, 0, NR));
		for (i = 0; i < NR; i += 2 * step)
			ASSERT_EQ(0, convert(self->fd, self->model, false, i, step));
		ASSERT_FALSE(model_differs(self->fd, self->model, NR))
			TH_LOG("holes of %u pages", step);
		/* Fill the holes one by one, then the other way around. */
		for (i = 0; i < NR; i += 2 * step)
			ASSERT_EQ(0, convert(self->fd, self->model, true, i, step));
		ASSERT_FALSE(model_differs(self->fd, self->model, NR));
		for (i = step; i < NR; i += 2 * step)
			ASSERT_EQ(0, convert(self->fd, self->model, false, i, step));
		ASSERT_FALSE(model_differs(self->fd, self->model, NR));
		/* One call over the whole finds all the holes. */
		ASSERT_EQ(0, convert(self->fd, self->model, true, 0, NR));
		ASSERT_FALSE(model_differs(self->fd, self->model, NR));
		ASSERT_EQ(0, convert(self->fd, self->model, false, 0, NR));
		ASSERT_FALSE(model_differs(self->fd, self->model, NR));
	}
}

TEST_F(thp, at_random)
{
	unsigned int round, rounds = 150 * scale();

	for (round = 0; round < rounds; round++) {
		unsigned int from = rnd(2) ? rnd(NR) : edge[rnd(ARRAY_SIZE(edge) - 1)];
		unsigned int nr = 1 + rnd(rnd(4) ? 20 : NR - from);
		bool private = rnd(2);

		if (from + nr > NR)
			nr = NR - from;
		ASSERT_EQ(0, convert(self->fd, self->model, private, from, nr));
		ASSERT_FALSE(model_differs(self->fd, self->model, NR))
			TH_LOG("round %u, %s %u+%u", round, private ? "allocated" : "punched",
			       from, nr);
	}
}

/* Nothing is allocated behind the end: nobody could punch it. */
TEST_F(thp, every_size)
{
	static const unsigned int size[] = { 1, 2, 15, 16, 17, 511, 512, 513, 1023 };
	unsigned int i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(size); i++) {
		fd = mfd_sealed(0, size[i] * PAGE);
		ASSERT_LE(0, fd);
		memset(self->model, 0, NR);
		ASSERT_EQ(0, convert(fd, self->model, true, 0, size[i]));
		EXPECT_FALSE(model_differs(fd, self->model, size[i]));
		ASSERT_EQ(0, convert(fd, self->model, false, size[i] - 1, 1));
		EXPECT_FALSE(model_differs(fd, self->model, size[i]));
		ASSERT_EQ(0, convert(fd, self->model, false, 0, size[i]));
		EXPECT_FALSE(model_differs(fd, self->model, size[i]));
		close(fd);
	}
}

TEST_F(thp, refusals_change_nothing)
{
	ASSERT_EQ(0, convert(self->fd, self->model, true, 100, 800));
	EXPECT_EQ(-EINVAL, do_fallocate(self->fd, PUNCH, 0, NR * PAGE - 1));
	EXPECT_EQ(-EINVAL, do_fallocate(self->fd, PUNCH, 1, NR * PAGE - 1));
	EXPECT_EQ(-EINVAL, do_fallocate(self->fd, PUNCH, PAGE, NR * PAGE));
	EXPECT_EQ(-EINVAL, do_fallocate(self->fd, 0, 512, NR * PAGE - 512));
	EXPECT_EQ(-EINVAL, do_fallocate(self->fd, 0, PAGE, NR * PAGE));
	EXPECT_EQ(-EOPNOTSUPP, do_fallocate(self->fd, FALLOC_FL_ZERO_RANGE, 0, NR * PAGE));
	EXPECT_FALSE(model_differs(self->fd, self->model, NR));
}

/* Private pages stay what they are, through all that moves or drops pages. */
TEST_F(thp, private_pages_stay)
{
	unsigned int i;

	for (i = 0; i < NR; i += 3)
		ASSERT_EQ(0, convert(self->fd, self->model, true, i, 1));
	ASSERT_EQ(0, convert(self->fd, self->model, true, 512, 512));
	for (i = 0; i < 3; i++) {
		sync();
		write_file("/proc/sys/vm/drop_caches", "3");
		write_file("/proc/sys/vm/compact_memory", "1");
		write_file("/sys/kernel/debug/split_huge_pages", "1");
		ASSERT_FALSE(model_differs(self->fd, self->model, NR));
	}
	ASSERT_EQ(0, convert(self->fd, self->model, false, 700, 1));
	ASSERT_FALSE(model_differs(self->fd, self->model, NR));
}

/* ---- threads on the same file ---- */

#define THREADS	4
#define BLOCK	3	/* pages; the blocks of the threads lie among each other */

struct worker {
	pthread_t thread;
	int fd;
	unsigned int id, seed, busy;
	bool *stop;
	unsigned char model[NR];
	char failure[160];
};

struct crew {
	int fd;
	bool stop;
	struct worker worker[THREADS];
};

FIXTURE(threads)
{
	struct crew crew;
};

FIXTURE_VARIANT(threads)
{
	const char *global;
};

FIXTURE_VARIANT_ADD(threads, small_pages)
{
	.global = "never",
};

FIXTURE_VARIANT_ADD(threads, huge_pages)
{
	.global = "always",
};

FIXTURE_SETUP(threads)
{
	const char *lacking = mfd_missing();

	if (lacking)
		SKIP(return, "%s", lacking);
	if (knob_set(SHMEM_ENABLED, variant->global))
		SKIP(return, SHMEM_ENABLED " (CONFIG_TRANSPARENT_HUGEPAGE)");
	self->crew.fd = mfd_sealed(0, NR * PAGE);
	ASSERT_LE(0, self->crew.fd);
	rnd_init();
}

FIXTURE_TEARDOWN(threads)
{
	knobs_restore();
	close(self->crew.fd);
}

static void start_workers(struct crew *crew, void *(*fn)(void *))
{
	unsigned int i;

	crew->stop = false;
	for (i = 0; i < THREADS; i++) {
		struct worker *w = &crew->worker[i];

		w->fd = crew->fd;
		w->id = i;
		w->seed = rnd(INT_MAX);
		w->stop = &crew->stop;
		w->failure[0] = 0;
		pthread_create(&w->thread, NULL, fn, w);
	}
}

static void stop_workers(struct crew *crew)
{
	unsigned int i;

	__atomic_store_n(&crew->stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < THREADS; i++)
		pthread_join(crew->worker[i].thread, NULL);
}

static bool go_on(struct worker *w)
{
	return !w->failure[0] && !__atomic_load_n(w->stop, __ATOMIC_RELAXED);
}

/*
 * Convert own pages only, and find them as left: what the others do to their
 * pages, in the same folio, must not touch these.
 */
static void *work_on_own_blocks(void *arg)
{
	struct worker *w = arg;

	while (go_on(w)) {
		unsigned int block = rand_r(&w->seed) % (NR / BLOCK);
		unsigned int from, nr, i;
		bool private = rand_r(&w->seed) % 2;
		int err;

		block -= block % THREADS;
		block += w->id;
		if ((block + 1) * BLOCK > NR)
			continue;
		from = rand_r(&w->seed) % BLOCK;
		nr = 1 + rand_r(&w->seed) % (BLOCK - from);
		from += block * BLOCK;
		err = convert(w->fd, w->model, private, from, nr);
		/* Nothing changed then; how often it may happen is counted. */
		if (err == -EBUSY && !private)
			w->busy++;
		else if (err)
			snprintf(w->failure, sizeof(w->failure), "%s %u+%u: %s",
				 private ? "allocate" : "punch", from, nr, strerror(-err));
		for (i = block * BLOCK; i < (block + 1) * BLOCK; i++) {
			bool data = lseek(w->fd, i * PAGE, SEEK_DATA) == (off_t)(i * PAGE);

			if (data != w->model[i])
				snprintf(w->failure, sizeof(w->failure),
					 "page %u is %s after %s of %u+%u", i,
					 data ? "data" : "a hole", private ? "allocation" : "punch",
					 from, nr);
		}
	}
	return NULL;
}

TEST_F(threads, own_pages)
{
	unsigned char model[NR] = "";
	unsigned int i, j, busy = 0;
	double end;

	/* In parts of the range all threads meet in folios that start whole. */
	ASSERT_EQ(0, convert(self->crew.fd, model, true, 0, NR));
	for (i = 0; i < THREADS; i++)
		memset(self->crew.worker[i].model, 1, NR);
	start_workers(&self->crew, work_on_own_blocks);
	for (end = now() + 2 * scale(); now() < end;) {
		usleep(50000);
		/* Splitting behind the back of all is harmless, too. */
		write_file("/sys/kernel/debug/split_huge_pages", "1");
	}
	stop_workers(&self->crew);

	for (i = 0; i < THREADS; i++) {
		EXPECT_STREQ("", self->crew.worker[i].failure);
		busy += self->crew.worker[i].busy;
		for (j = 0; j < NR; j++)
			if (j / BLOCK % THREADS == i)
				model[j] = self->crew.worker[i].model[j];
	}
	EXPECT_EQ(0, busy)
		TH_LOG("punches that failed with EBUSY, though nobody can hold a page");
	EXPECT_FALSE(model_differs(self->crew.fd, model, NR));
	ASSERT_EQ(0, convert(self->crew.fd, model, false, 0, NR));
	EXPECT_FALSE(model_differs(self->crew.fd, model, NR));
}

/* All at the same pages: no model can tell the outcome, but it must add up. */
static void *work_on_all(void *arg)
{
	struct worker *w = arg;

	while (go_on(w)) {
		unsigned int from = rand_r(&w->seed) % NR;
		unsigned int nr = 1 + rand_r(&w->seed) % (NR - from);
		int err = do_fallocate(w->fd, rand_r(&w->seed) % 2 ? 0 : PUNCH, from * PAGE,
				       nr * PAGE);

		if (err == -EBUSY)
			w->busy++;
		else if (err)
			snprintf(w->failure, sizeof(w->failure), "%u+%u: %s", from, nr,
				 strerror(-err));
	}
	return NULL;
}

TEST_F(threads, same_pages)
{
	unsigned char map[NR];
	unsigned int round, i;

	for (round = 0; round < 4 * scale(); round++) {
		long data = 0;

		start_workers(&self->crew, work_on_all);
		usleep(300000);
		stop_workers(&self->crew);
		for (i = 0; i < THREADS; i++)
			ASSERT_STREQ("", self->crew.worker[i].failure);
		ASSERT_TRUE(map_read(self->crew.fd, map, NR));
		for (i = 0; i < NR; i++)
			data += map[i];
		ASSERT_EQ(data, blocks_pages(self->crew.fd));
		memset(map, 0, NR);
		ASSERT_EQ(0, convert(self->crew.fd, map, false, 0, NR));
		ASSERT_FALSE(model_differs(self->crew.fd, map, NR));
	}
}

/* ---- one long call ---- */

#define LONG_NR	(32768UL)

FIXTURE(long_call)
{
	int fd;
	unsigned char *model;
};

FIXTURE_SETUP(long_call)
{
	const char *lacking = mfd_missing();

	if (lacking)
		SKIP(return, "%s", lacking);
	/* Small pages take longer; not all kernels have the knob. */
	knob_set(SHMEM_ENABLED, "never");
	self->fd = mfd_sealed(0, LONG_NR * PAGE);
	self->model = calloc(LONG_NR, 1);
	ASSERT_LE(0, self->fd);
	ASSERT_NE(NULL, self->model);
}

FIXTURE_TEARDOWN(long_call)
{
	knobs_restore();
	close(self->fd);
	free(self->model);
}

/* How many pages from the start are data; all after that has to be a hole. */
static long prefix(struct __test_metadata *_metadata, int fd, unsigned char *model, size_t nr)
{
	long hole = lseek(fd, 0, SEEK_HOLE) / PAGE;

	memset(model, 0, nr);
	model_set(model, 0, hole, 1);
	EXPECT_FALSE(model_differs(fd, model, nr));
	return hole;
}

static void *fallocate_all(void *arg)
{
	return (void *)(long)do_fallocate(*(int *)arg, 0, 0, LONG_NR * PAGE);
}

/* Others get at the file meanwhile: they see it grow, in order, and punch it. */
TEST_F(long_call, lets_others_in)
{
	unsigned int partial = 0, punched = 0, tries;
	unsigned char *model = self->model;
	double end = now() + 20;
	off_t last, hole;
	pthread_t thread;
	void *ret;

	for (tries = 0; tries < 20 && now() < end && !(partial && punched); tries++) {
		ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, 0, LONG_NR * PAGE));
		model_set(model, 0, LONG_NR, 1);
		ASSERT_EQ(0, pthread_create(&thread, NULL, fallocate_all, &self->fd));
		for (last = 0; now() < end;) {
			hole = lseek(self->fd, 2 * PAGE, SEEK_HOLE) / PAGE;
			EXPECT_LE(last, hole);
			last = hole;
			if (hole == LONG_NR)
				break;
			if (hole <= 2)
				continue;
			partial++;
			/* Behind the back of the call: it won't come back here. */
			if (!model[1])
				continue;
			EXPECT_EQ(0, do_fallocate(self->fd, PUNCH, PAGE, PAGE));
			model[1] = 0;
			punched += lseek(self->fd, 2 * PAGE, SEEK_HOLE) / PAGE < LONG_NR;
		}
		pthread_join(thread, &ret);
		EXPECT_EQ(NULL, ret);
		EXPECT_FALSE(model_differs(self->fd, model, LONG_NR));
	}
	EXPECT_LT(0, partial)
		TH_LOG("lseek() never returned in the middle of a call");
	EXPECT_LT(0, punched)
		TH_LOG("no hole was punched in the middle of a call");
}

static unsigned int alarms;

static void on_alarm(int sig)
{
	alarms++;
}

static void set_alarm(long usec, bool again)
{
	struct itimerval timer = {
		.it_value.tv_sec = usec / 1000000, .it_value.tv_usec = usec % 1000000,
	};

	if (again)
		timer.it_interval = timer.it_value;
	setitimer(ITIMER_REAL, &timer, NULL);
}

TEST_F(long_call, signal)
{
	struct sigaction act = { .sa_handler = on_alarm };
	long usec = 20000, got = 0;
	int err = 0, tries;

	sigaction(SIGALRM, &act, NULL);
	for (tries = 0; tries < 50; tries++) {
		ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, 0, LONG_NR * PAGE));
		alarms = 0;
		set_alarm(usec, false);
		err = do_fallocate(self->fd, 0, 0, LONG_NR * PAGE);
		set_alarm(0, false);
		if (err) {
			got = prefix(_metadata, self->fd, self->model, LONG_NR);
			if (got)
				break;
			/* It came before the first page. */
			usec += usec / 2;
		} else if (usec > 400) {
			/* It was over too soon, or took no notice. */
			usec /= 2;
		}
	}
	EXPECT_EQ(-EINTR, err);
	EXPECT_LT(0, got);
	EXPECT_GT((long)LONG_NR, got);

	/* What is there stays, and the rest can still be had. */
	EXPECT_EQ(0, do_fallocate(self->fd, 0, 0, LONG_NR * PAGE));
	model_set(self->model, 0, LONG_NR, 1);
	EXPECT_FALSE(model_differs(self->fd, self->model, LONG_NR));
}

/* A caller that resumes at the first hole gets there, timers or not. */
TEST_F(long_call, periodic_signals)
{
	struct sigaction act = { .sa_handler = on_alarm };
	unsigned int calls = 0;
	double end = now() + 15;
	off_t from = 0;
	int err;

	sigaction(SIGALRM, &act, NULL);
	set_alarm(10000, true);
	do {
		err = do_fallocate(self->fd, 0, from, LONG_NR * PAGE - from);
		if (err)
			from = lseek(self->fd, 0, SEEK_HOLE);
		calls++;
	} while (err == -EINTR && now() < end);
	set_alarm(0, false);
	EXPECT_EQ(0, err)
		TH_LOG("after %u calls and %u signals at page %lld", calls, alarms,
		       (long long)from / (long long)PAGE);
	model_set(self->model, 0, LONG_NR, 1);
	EXPECT_FALSE(model_differs(self->fd, self->model, LONG_NR));
}

TEST_F(long_call, killed)
{
	long got = 0;
	int status, tries;
	pid_t pid;

	for (tries = 0; tries < 20 && (!got || got == LONG_NR); tries++) {
		ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, 0, LONG_NR * PAGE));
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid)
			_exit(do_fallocate(self->fd, 0, 0, LONG_NR * PAGE) ? 1 : 0);
		/* As soon as there is a page; stat() waits for nobody. */
		while (!blocks_pages(self->fd))
			;
		kill(pid, SIGKILL);
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		EXPECT_TRUE(WIFSIGNALED(status) || status == 0);
		got = prefix(_metadata, self->fd, self->model, LONG_NR);
	}
	EXPECT_LT(0, got);
	EXPECT_GT((long)LONG_NR, got)
		TH_LOG("SIGKILL never ended the call before its end");
}

/* ---- no memory ---- */

/*
 * A child allocates in a memory cgroup with a limit. Its own memory is touched
 * before it enters, so that the limit is met by fallocate() alone.
 */
struct limited {
	struct memcg cg;
	int *result;
};

FIXTURE(limit)
{
	int fd;
	struct limited lim;
	unsigned char model[NR];
};

FIXTURE_VARIANT(limit)
{
	const char *global;
	unsigned int nr, step;
};

FIXTURE_VARIANT_ADD(limit, small_pages)
{
	.global = "never", .nr = 48, .step = 1,
};

FIXTURE_VARIANT_ADD(limit, huge_pages)
{
	.global = "always", .nr = NR, .step = 97,
};

FIXTURE_SETUP(limit)
{
	const char *lacking = mfd_missing();

	if (!lacking)
		lacking = memcg_create(&self->lim.cg);
	if (lacking)
		SKIP(return, "%s", lacking);
	if (knob_set(SHMEM_ENABLED, variant->global)) {
		memcg_destroy(&self->lim.cg);
		SKIP(return, SHMEM_ENABLED " (CONFIG_TRANSPARENT_HUGEPAGE)");
	}
	/* Without swap in the cgroup the limit is a limit. */
	memcg_write(&self->lim.cg, "memory.swap.max", "0");
	self->lim.result = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
				-1, 0);
	ASSERT_NE(MAP_FAILED, self->lim.result);
	self->fd = mfd_sealed(0, variant->nr * PAGE);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(limit)
{
	close(self->fd);
	memcg_destroy(&self->lim.cg);
	knobs_restore();
}

/* Returns what fallocate() did; -EKILLED if it did not live to tell. */
#define EKILLED 10000

static int fallocate_in_cgroup(struct limited *lim, int fd, off_t offset, off_t len)
{
	int status;
	pid_t pid;

	*lim->result = -EKILLED;
	pid = fork();
	if (pid < 0)
		return -errno;
	if (!pid) {
		mlockall(MCL_CURRENT);
		if (memcg_enter(&lim->cg))
			_exit(1);
		*lim->result = do_fallocate(fd, 0, offset, len);
		/* Leave for the exit, which may need some memory itself. */
		memcg_leave(&lim->cg);
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || status)
		return -EKILLED;
	return *lim->result;
}

/* One attempt with a limit: what it got, or nr if it got all. */
static unsigned int fallocate_to_limit(struct __test_metadata *_metadata,
				       FIXTURE_DATA(limit) * self, unsigned int nr,
				       unsigned int limit)
{
	const unsigned int there[] = { nr / 3, nr / 2, nr - 2 };
	unsigned int i, full;
	int err;

	ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, 0, nr * PAGE));
	memset(self->model, 0, NR);
	/* Freed pages in the batches of a CPU are charged until drained. */
	write_file("/proc/sys/vm/drop_caches", "1");
	/* Some pages are private already, at the cost of somebody else. */
	for (i = 0; i < ARRAY_SIZE(there); i++)
		ASSERT_EQ(0, convert(self->fd, self->model, true, there[i], 1));
	ASSERT_EQ(0, memcg_write(&self->lim.cg, "memory.max", "%lu", limit * PAGE));
	err = fallocate_in_cgroup(&self->lim, self->fd, 0, nr * PAGE);
	if (err)
		ASSERT_EQ(-ENOMEM, err)
			TH_LOG("limit %u pages: %s", limit,
			       err == -EKILLED ? "killed" : strerror(-err));

	/* In order from the start, and nothing of what was there lost */
	full = lseek(self->fd, 0, SEEK_HOLE) / PAGE;
	model_set(self->model, 0, full, 1);
	ASSERT_FALSE(model_differs(self->fd, self->model, nr))
		TH_LOG("limit %u pages, %u done", limit, full);
	ASSERT_EQ(!err, full == nr);
	return full;
}

/*
 * Up to which limit it fails depends on what else is charged, such as the nodes
 * of the page cache: find it with large steps, then have the last page fail.  On
 * a kernel that watches itself that takes long.
 */
TEST_F_TIMEOUT(limit, first_middle_and_last_page, 300)
{
	const unsigned int nr = variant->nr;
	unsigned int limit, full, middle = 0;

	EXPECT_EQ(0, fallocate_to_limit(_metadata, self, nr, 0));
	for (limit = 1;; limit += variant->step) {
		ASSERT_GT(2 * nr + 64, limit);
		full = fallocate_to_limit(_metadata, self, nr, limit);
		if (full == nr)
			break;
		middle += full > 0;
	}
	EXPECT_LT(0, middle);
	ASSERT_LT(1, limit);
	for (limit -= variant->step; full == nr && variant->step > 1; limit++)
		full = fallocate_to_limit(_metadata, self, nr, limit);
	for (; full < nr; limit++)
		full = fallocate_to_limit(_metadata, self, nr, limit);
	EXPECT_EQ(0, memcg_stat(&self->lim.cg, "memory.events", "oom_kill"));
}

/* A request for 8 EiB ends at the limit like any other. */
TEST_F(limit, of_endless_request)
{
	const off_t size = LLONG_MAX & -PAGE;
	int fd = mfd_sealed(0, size);
	off_t hole;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, memcg_write(&self->lim.cg, "memory.max", "%lu", 2 * NR * PAGE));
	EXPECT_EQ(-ENOMEM, fallocate_in_cgroup(&self->lim, fd, 0, size));
	hole = lseek(fd, 0, SEEK_HOLE);
	EXPECT_LT((off_t)(NR * PAGE), hole);
	EXPECT_GE((off_t)(2 * NR * PAGE), hole);
	EXPECT_EQ((long)(hole / PAGE), blocks_pages(fd));
	EXPECT_EQ(-1, lseek(fd, hole, SEEK_DATA));
	EXPECT_EQ(ENXIO, errno);
	EXPECT_EQ(0, memcg_stat(&self->lim.cg, "memory.events", "oom_kill"));

	/* In the middle of the file as well */
	EXPECT_EQ(0, do_fallocate(fd, PUNCH, 0, size));
	EXPECT_EQ(0, blocks_pages(fd));
	EXPECT_EQ(-ENOMEM, fallocate_in_cgroup(&self->lim, fd, 1LL << 40, size - (1LL << 40)));
	EXPECT_EQ(1LL << 40, lseek(fd, 0, SEEK_DATA));
	EXPECT_EQ(0, memcg_stat(&self->lim.cg, "memory.events", "oom_kill"));
	close(fd);
}

/*
 * Small pages for half of what is allocated in one step: what there is room for is
 * used, although the nodes of the file's tree are charged after the pages.
 */
TEST_F(limit, of_less_than_a_step)
{
	const off_t step = NR / 2 * PAGE;
	int fd = mfd_sealed(0, step);
	off_t hole;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, memcg_write(&self->lim.cg, "memory.max", "%ld", step / 2));
	EXPECT_EQ(-ENOMEM, fallocate_in_cgroup(&self->lim, fd, 0, step));
	hole = lseek(fd, 0, SEEK_HOLE);
	EXPECT_LT(step / 4, hole);
	EXPECT_GE(step / 2, hole);
	EXPECT_EQ(0, memcg_stat(&self->lim.cg, "memory.events", "oom_kill"));
	close(fd);
}

/* The statistics lag behind by some seconds. */
static bool becomes(struct memcg *cg, long shmem)
{
	double end = now() + 10;
	long value;

	do {
		value = memcg_stat(cg, "memory.stat", "shmem");
		if (value == shmem)
			return true;
		usleep(50000);
	} while (now() < end);
	fprintf(stderr, "# %ld bytes are charged, expected %ld\n", value, shmem);
	return false;
}

/* The memory is charged to the group of whoever converts, not to nobody. */
TEST_F(limit, charged)
{
	const long size = NR * PAGE;
	int fd = mfd_sealed(0, size);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, memcg_write(&self->lim.cg, "memory.max", "max"));
	EXPECT_EQ(0, fallocate_in_cgroup(&self->lim, fd, 0, size));
	EXPECT_LE(size, memcg_stat(&self->lim.cg, "memory.current", NULL));
	EXPECT_TRUE(becomes(&self->lim.cg, size));
	EXPECT_EQ(0, do_fallocate(fd, PUNCH, 0, size));
	EXPECT_TRUE(becomes(&self->lim.cg, 0));
	close(fd);
}

/* No limit on pages but on commitments: ENOSPC, by the same rules. */
TEST_F(limit, of_commitment)
{
	const unsigned long nr = 16384;
	unsigned char *model = malloc(nr);
	char kbytes[32];
	int fd, err;
	long got;

	fd = mfd_sealed(0, nr * PAGE);
	ASSERT_LE(0, fd);
	ASSERT_NE(NULL, model);
	snprintf(kbytes, sizeof(kbytes), "%ld", meminfo_kb("Committed_AS") + 32768);
	ASSERT_EQ(0, knob_set("/proc/sys/vm/overcommit_memory", "2"));
	ASSERT_EQ(0, knob_set("/proc/sys/vm/overcommit_kbytes", kbytes));
	/* Swap and reserves count, too: don't ask where exactly it ends. */
	err = do_fallocate(fd, 0, 0, nr * PAGE);
	knobs_restore();
	EXPECT_EQ(-ENOSPC, err);
	got = prefix(_metadata, fd, model, nr);
	EXPECT_LT(0, got);
	EXPECT_GT((long)nr, got);
	free(model);
	close(fd);
}

/* ---- what will be unmovable is not where only movable memory belongs ---- */

static long movable_zone_free(void)
{
	char line[128], zone[16] = "";
	long pages, free = 0;
	FILE *f;

	f = fopen("/proc/zoneinfo", "r");
	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "Node %*d, zone %15s", zone) == 1)
			continue;
		/* What is left to the CPUs is free, too. */
		if (!strcmp(zone, "Movable") &&
		    (sscanf(line, " pages free %ld", &pages) == 1 ||
		     sscanf(line, " count: %ld", &pages) == 1))
			free += pages;
	}
	fclose(f);
	return free;
}

static long cma_free(void)
{
	return meminfo_kb("CmaFree") * 1024 / PAGE;
}

/* Somewhere that is the first choice for an ordinary file */
static void stays_outside(struct __test_metadata *_metadata, long (*pages_free)(void),
			  const char *where)
{
	/* A quarter of it may come and go for other reasons. */
	const long nr = 16384, some = nr / 4;
	const char *lacking = mfd_missing();
	long before, with_ordinary;
	int ordinary, sealed, tries;

	if (lacking)
		SKIP(return, "%s", lacking);
	before = pages_free();
	if (before < 3 * nr)
		SKIP(return, "%s", where);

	ordinary = mfd_filled(0, nr * PAGE);
	ASSERT_LE(0, ordinary);
	with_ordinary = pages_free();
	EXPECT_GT(before - nr + some, with_ordinary);

	sealed = mfd_sealed(0, nr * PAGE);
	ASSERT_LE(0, sealed);
	ASSERT_EQ(0, do_fallocate(sealed, 0, 0, nr * PAGE));
	EXPECT_LT(with_ordinary - some, pages_free());

	/*
	 * What has been there before the seal has to leave. CPUs keep what was
	 * freed for a while.
	 */
	if (!late_seal_missing()) {
		ASSERT_EQ(0, late_seal(ordinary));
		for (tries = 0; tries < 200 && pages_free() <= before - some; tries++)
			usleep(100000);
		EXPECT_LT(before - some, pages_free());
	}
	close(sealed);
	close(ordinary);
}

TEST(outside_movable_zone)
{
	stays_outside(_metadata, movable_zone_free, "ZONE_MOVABLE (movablecore=)");
}

/*
 * It has to be more than half of what a zone has free, or it is not the first
 * choice: on a machine of 3.5 GiB, a large part of what is above 4 GiB.
 */
TEST(outside_cma)
{
	stays_outside(_metadata, cma_free, "a large part of the memory for CMA (hugetlb_cma=)");
}

/* ---- from the node that the file's policy names, or the task's ---- */

#define BLOCKS "/sys/kernel/debug/fail_page_alloc/"

static long node_shmem_kb(int node)
{
	char path[64], line[128];
	long kb = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/meminfo", node);
	f = fopen(path, "r");
	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "Node %*d Shmem: %ld", &kb) == 1)
			break;
	fclose(f);
	return kb;
}

FIXTURE(policy)
{
	unsigned long node1;	/* a mask with this one in it */
};

FIXTURE_VARIANT(policy)
{
	bool of_file;	/* or of the task */
	bool singly;	/* there are no blocks of free pages */
};

FIXTURE_VARIANT_ADD(policy, file_blocks)
{
	.of_file = true,
};

FIXTURE_VARIANT_ADD(policy, file_singly)
{
	.of_file = true, .singly = true,
};

FIXTURE_VARIANT_ADD(policy, task_blocks)
{
};

FIXTURE_VARIANT_ADD(policy, task_singly)
{
	.singly = true,
};

FIXTURE_SETUP(policy)
{
	const char *lacking = variant->of_file ? late_seal_missing() : mfd_missing();

	if (lacking)
		SKIP(return, "%s", lacking);
	if (node_shmem_kb(1) < 0)
		SKIP(return, "a second node");
	self->node1 = 1 << 1;
	knob_set(SHMEM_ENABLED, "never");
	if (variant->singly && (knob_set(BLOCKS "probability", "100") ||
				knob_set(BLOCKS "min-order", "1") ||
				knob_set(BLOCKS "verbose", "0") ||
				knob_set(BLOCKS "times", "-1"))) {
		knobs_restore();
		SKIP(return, "CONFIG_FAIL_PAGE_ALLOC");
	}
}

FIXTURE_TEARDOWN(policy)
{
	knobs_restore();
}

/* Only a mapping has a call to set it, so it comes from before the seal. */
static int mfd_of_node(const unsigned long *nodes, off_t size)
{
	void *map = MAP_FAILED;
	int fd, err = 0;

	fd = mfd_ordinary(MFD_ALLOW_SEALING, size);
	if (fd < 0)
		return fd;
	map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED ||
	    syscall(SYS_mbind, map, size, MPOL_BIND, nodes, 8 * sizeof(*nodes), 0))
		err = -errno;
	if (map != MAP_FAILED)
		munmap(map, size);
	if (!err)
		err = late_seal(fd);
	if (err)
		close(fd);
	return err ?: fd;
}

TEST_F(policy, node)
{
	/* Counters lag behind by some pages for each CPU. */
	const long nr = 4096, some = 256;
	const unsigned long *nodes = &self->node1;
	long before, kb;
	int fd;

	fd = variant->of_file ? mfd_of_node(nodes, nr * PAGE) : mfd_sealed(0, nr * PAGE);
	ASSERT_LE(0, fd);
	before = node_shmem_kb(1);
	if (!variant->of_file)
		ASSERT_EQ(0, syscall(SYS_set_mempolicy, MPOL_BIND, nodes, 8 * sizeof(*nodes)));
	ASSERT_EQ(0, do_fallocate(fd, 0, 0, nr * PAGE));
	kb = node_shmem_kb(1) - before;
	EXPECT_LE((nr - some) * (long)PAGE / 1024, kb)
		TH_LOG("%ld KiB of %ld are on node 1", kb, nr * (long)PAGE / 1024);
	close(fd);
}

/* ---- swapped out, a page is as private as before ---- */

TEST(swapped_out)
{
	const unsigned int nr = 512;
	struct swap_space sw;
	unsigned char model[NR] = "";
	const char *lacking;
	struct memcg cg;
	int fd, status, i;
	long swapped;
	pid_t pid;

	lacking = mfd_missing();
	if (lacking)
		SKIP(return, "%s", lacking);
	lacking = memcg_create(&cg);
	if (!lacking)
		lacking = swap_on(&sw, 64 << 20);
	if (lacking) {
		memcg_destroy(&cg);
		SKIP(return, "%s", lacking);
	}
	fd = mfd_sealed(0, NR * PAGE);
	ASSERT_LE(0, fd);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (memcg_enter(&cg))
			_exit(2);
		_exit(do_fallocate(fd, 0, nr * PAGE, nr * PAGE) ? 1 : 0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);
	model_set(model, nr, nr, 1);
	for (i = 0; i < 20 && memcg_stat(&cg, "memory.swap.current", NULL) < (long)(nr * PAGE / 2);
	     i++)
		memcg_write(&cg, "memory.reclaim", "%lu", nr * PAGE);
	/* As long as no guest uses it, the memory is nothing special. */
	EXPECT_LE((long)(nr * PAGE / 2), memcg_stat(&cg, "memory.swap.current", NULL))
		TH_LOG("bytes of %lu were swapped out", nr * PAGE);
	EXPECT_FALSE(model_differs(fd, model, NR));

	/* Allocating what is in swap, and around it */
	EXPECT_EQ(0, convert(fd, model, true, nr - 1, 3));
	EXPECT_FALSE(model_differs(fd, model, NR));
	EXPECT_EQ(0, convert(fd, model, true, 2 * nr - 2, 2));
	EXPECT_FALSE(model_differs(fd, model, NR));
	EXPECT_EQ(-EINVAL, do_fallocate(fd, PUNCH, (nr + 200) * PAGE, PAGE / 2));
	EXPECT_FALSE(model_differs(fd, model, NR));

	/* Punching it frees the swap entries; each CPU keeps some for later. */
	swapped = memcg_stat(&cg, "memory.swap.current", NULL);
	EXPECT_EQ(0, convert(fd, model, false, nr, nr / 2));
	EXPECT_FALSE(model_differs(fd, model, NR));
	EXPECT_GE(swapped - (long)(nr / 4 * PAGE), memcg_stat(&cg, "memory.swap.current", NULL));

	/* And the rest comes back in, when the swap space is taken away. */
	EXPECT_LT(0, memcg_stat(&cg, "memory.swap.current", NULL));
	swap_off(&sw);
	EXPECT_EQ(0, memcg_stat(&cg, "memory.swap.current", NULL));
	EXPECT_FALSE(model_differs(fd, model, NR));
	EXPECT_EQ(0, convert(fd, model, false, 0, NR));
	EXPECT_FALSE(model_differs(fd, model, NR));
	close(fd);
	memcg_destroy(&cg);
}

static void *swap_off_thread(void *arg)
{
	struct swap_space *sw = arg;

	return (void *)(long)swapoff(sw->dev);
}

/*
 * Large folios in swap are split by whoever reads a page of them back. None of
 * that may be left when a hole is punched there at the same time, so the two have
 * to meet in what the latter has looked up at once.
 */
TEST(read_back_meanwhile)
{
	static const char large[] = THP "hugepages-64kB/stats/shmem_alloc";
	static const char in_pieces[] = THP "hugepages-64kB/stats/swpout_fallback";
	const time_t end = time(NULL) + 10;
	const size_t size = 4 * HUGE;
	struct swap_space sw;
	const char *lacking;
	struct memcg cg;
	long had_large = knob_number(large), had_pieces = knob_number(in_pieces);
	int fd, i, round, left = 0;
	pthread_t thread;
	void *failed;

	lacking = mfd_missing();
	if (!lacking && (knob_set(SHMEM_ENABLED, "never") ||
			 knob_set(THP "hugepages-64kB/shmem_enabled", "advise")))
		lacking = "shmem_enabled for each size of huge pages";
	if (lacking) {
		knobs_restore();
		SKIP(return, "%s", lacking);
	}
	lacking = memcg_create(&cg);
	if (!lacking)
		lacking = swap_on(&sw, 2 * size);
	if (lacking) {
		knobs_restore();
		memcg_destroy(&cg);
		SKIP(return, "%s", lacking);
	}
	rnd_init();
	for (round = 0; round < 4 || time(NULL) < end; round++) {
		fd = mfd_sealed(0, size);
		ASSERT_LE(0, fd);
		ASSERT_EQ(0, memcg_enter(&cg));
		ASSERT_EQ(0, do_fallocate(fd, 0, 0, size));
		memcg_leave(&cg);
		for (i = 0; i < 20 &&
		     memcg_stat(&cg, "memory.swap.current", NULL) < (long)size; i++)
			memcg_write(&cg, "memory.reclaim", "%lu", size);
		ASSERT_EQ(0, pthread_create(&thread, NULL, swap_off_thread, &sw));
		usleep(rnd(2000));
		ASSERT_EQ(0, do_fallocate(fd, PUNCH, 0, size));
		left += lseek(fd, 0, SEEK_DATA) >= 0;
		pthread_join(thread, &failed);
		ASSERT_EQ(NULL, failed);
		close(fd);
		ASSERT_EQ(0, swapon(sw.dev, 0));
	}
	EXPECT_EQ(0, left) TH_LOG("rounds of %d in which something was left", round);
	/* They do get there as a whole. */
	EXPECT_LE(round * (long)(size / (16 * PAGE)), knob_number(large) - had_large);
	EXPECT_EQ(had_pieces, knob_number(in_pieces));
	swap_off(&sw);
	memcg_destroy(&cg);
	knobs_restore();
}

TEST_HARNESS_MAIN
