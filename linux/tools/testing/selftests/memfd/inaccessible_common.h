/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of inaccessible memfds share: making the files, comparing
 * what the kernel reports of them with a model, and turning system knobs.
 *
 * Files are on shmem, or with "hugetlbfs" or "gigantic" as an argument of the
 * test on hugetlbfs, of 2 MiB or of 1 GiB pages.
 */
#ifndef INACCESSIBLE_COMMON_H_
#define INACCESSIBLE_COMMON_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>
#include <sys/types.h>
#include <linux/falloc.h>
#include <linux/io_uring.h>

#include "../kselftest.h"

/* The values are ABI; headers older than the kernel under test lack them. */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL		0x0008U
#endif
#ifndef MFD_EXEC
#define MFD_EXEC		0x0010U
#endif
#ifndef MFD_INACCESSIBLE
#define MFD_INACCESSIBLE	0x0020U
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC		0x0020
#endif
#ifndef F_SEAL_INACCESSIBLE
#define F_SEAL_INACCESSIBLE	0x0040
#endif

#define PAGE		((size_t)getpagesize())
#define HUGE		(512 * PAGE)

#define PUNCH		(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)

/* The store of the files: the flags that select it, and the unit it deals in */
struct store {
	unsigned int flags;
	size_t unit;
};

extern struct store store;

#define UNIT		(store.unit ? store.unit : PAGE)
#define ON_HUGETLBFS	(store.flags != 0)

void store_select(int argc, char **argv);

#define STORE_HARNESS_MAIN			\
int main(int argc, char **argv)			\
{						\
	store_select(argc, argv);		\
	return test_harness_run(argc, argv);	\
}

/* Why a test has nothing to do on hugetlbfs */
#define OF_SHMEM	"a matter of shmem"

/*
 * Files. All of them return a descriptor or -errno; a size of 0 leaves the
 * file empty. Of the selected store, but for mfd_create().
 */
int mfd_create(unsigned int flags);
int mfd_sealed(unsigned int flags, off_t size);
int mfd_ordinary(unsigned int flags, off_t size);
int mfd_filled(unsigned int flags, off_t size);
int mfd_put(int fd, const void *buf, size_t len, off_t offset);
int mfd_reopen(int fd, int flags);

/* NULL, or what the kernel lacks. */
const char *mfd_missing(void);
const char *late_seal_missing(void);

/* System calls as the kernel defines them: a result or -errno. */
long neg_errno(long ret);
bool no_such_call(long err);
int do_fallocate(int fd, int mode, off_t offset, off_t len);
int do_ftruncate(int fd, off_t size);
int do_add_seals(int fd, unsigned int seals);
int late_seal(int fd);

/*
 * The fill of an ordinary file before it is sealed. No byte of it is zero:
 * whoever reads a zero has read a page that came after the seal.
 */
unsigned char fill_byte(size_t offset);
void fill(void *buf, size_t offset, size_t len);
ssize_t fill_mismatch(const void *buf, size_t offset, size_t len);

/*
 * A model has one byte for every page of the file, of the size that the store
 * deals in, as all of the following: 1 = allocated = private.
 * model_differs() compares it with what lseek() and fstat() report, says on
 * stderr what differs, and returns whether anything does.
 */
#define model_set(model, from, nr, value) memset((model) + (from), value, nr)
bool map_read(int fd, unsigned char *map, size_t nr);
bool __model_differs(int fd, const unsigned char *model, size_t nr, const char *file, int line);
#define model_differs(fd, model, nr) __model_differs(fd, model, nr, __FILE__, __LINE__)
long blocks_pages(int fd);
off_t file_size(int fd);

/* Everything user space can see of a file, to find that nothing changed. */
struct file_state {
	struct {
		long long size, blocks;
		unsigned int mode, nlink;
		int seals;
	} s;
	off_t pos;
	size_t nr;
	unsigned char *map;
};

void file_state_get(int fd, struct file_state *st);
bool __file_state_changed(int fd, struct file_state *st, const char *file, int line);
#define file_state_changed(fd, st) __file_state_changed(fd, st, __FILE__, __LINE__)

/* Knobs under /sys and /proc; knobs_restore() undoes them, last one first. */
int knob_set(const char *path, const char *value);
int knob_read(const char *path, char *value, size_t size);
void knobs_restore(void);
long knob_number(const char *path);
int __printf(2, 3) write_file(const char *path, const char *fmt, ...);
long meminfo_kb(const char *name);

#define SHMEM_ENABLED "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

/* Memory control groups, version 2 */
struct memcg {
	char path[128];
	int outside;	/* to leave by, opened while there's memory for it */
};

const char *memcg_create(struct memcg *cg);
int __printf(3, 4) memcg_write(struct memcg *cg, const char *file, const char *fmt, ...);
long memcg_stat(struct memcg *cg, const char *file, const char *key);
int cgroup_controller(const char *controller);
int cgroup_remount(const char *options);
int memcg_enter(struct memcg *cg);
int memcg_leave(struct memcg *cg);
void memcg_destroy(struct memcg *cg);

/* Swap space on a loop device, for the tests that want pages swapped out */
struct swap_space {
	int loop, backing;
	char dev[32];
};

const char *swap_on(struct swap_space *sw, size_t size);
void swap_off(struct swap_space *sw);

int loop_attach(int backing, char *dev, size_t size);

/* io_uring, one request at a time */
struct uring {
	int fd;
	void *sq, *cq;
	struct io_uring_sqe *sqes;
	struct io_uring_params p;
};

int uring_open(struct uring *ring);
void uring_close(struct uring *ring);
int uring_do(struct uring *ring, const struct io_uring_sqe *sqe);
int uring_register(struct uring *ring, unsigned int op, const void *arg, unsigned int nr);

/* The page frame behind an address, and its bytes in /proc/kcore */
uint64_t pfn_of(const void *addr);
int kcore_open(void);
int kcore_read(int kcore, uint64_t pfn, void *buf);

/* The factor on rounds and times, and repeatable random numbers */
unsigned int scale(void);
unsigned int rnd(unsigned int below);
void rnd_init(void);
double now(void);

#endif
