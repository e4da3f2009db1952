// SPDX-License-Identifier: GPL-2.0
/*
 * What the tests of inaccessible memfds share.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <linux/elf.h>
#include <linux/loop.h>
#include <linux/memfd.h>
#include "inaccessible_common.h"

long neg_errno(long ret)
{
	return ret < 0 ? -errno : ret;
}

/* Is that the error of system calls that the kernel does not have? */
bool no_such_call(long err)
{
	return err == neg_errno(syscall(-1L));
}

int mfd_create(unsigned int flags)
{
	return neg_errno(syscall(__NR_memfd_create, "inaccessible", flags));
}

struct store store;

void store_select(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[argc - 1] : "";

	if (!strcmp(name, "hugetlbfs"))
		store = (struct store){ MFD_HUGETLB | MFD_HUGE_2MB, 2UL << 20 };
	else if (!strcmp(name, "gigantic"))
		store = (struct store){ MFD_HUGETLB | MFD_HUGE_1GB, 1UL << 30 };
}

static int mfd_sized(unsigned int flags, off_t size)
{
	int fd = mfd_create(store.flags | flags);
	int err = 0;

	if (fd < 0)
		return fd;
	if (size)
		err = do_ftruncate(fd, size);
	if (err) {
		close(fd);
		return err;
	}
	return fd;
}

int mfd_sealed(unsigned int flags, off_t size)
{
	return mfd_sized(MFD_INACCESSIBLE | flags, size);
}

int mfd_ordinary(unsigned int flags, off_t size)
{
	return mfd_sized(MFD_ALLOW_SEALING | flags, size);
}

/* Write to the file, by a mapping on hugetlbfs, which can't be written to. */
int mfd_put(int fd, const void *buf, size_t len, off_t offset)
{
	off_t start = offset - offset % UNIT;
	size_t size = offset + len - start;
	ssize_t ret;
	char *p;

	if (!ON_HUGETLBFS) {
		ret = pwrite(fd, buf, len, offset);
		return ret == (ssize_t)len ? 0 : ret < 0 ? -errno : -EIO;
	}
	size += UNIT - 1 - (size - 1) % UNIT;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, start);
	if (p == MAP_FAILED)
		return -errno;
	memcpy(p + offset - start, buf, len);
	munmap(p, size);
	return 0;
}

int mfd_filled(unsigned int flags, off_t size)
{
	const size_t step = UNIT > 65536 ? UNIT : 65536;
	int fd = mfd_ordinary(flags, size), err = 0;
	unsigned char *buf = malloc(step);
	off_t done;

	for (done = 0; fd >= 0 && !err && done < size; done += step) {
		size_t len = (size_t)(size - done) < step ? (size_t)(size - done) : step;

		fill(buf, done, len);
		err = mfd_put(fd, buf, len, done);
	}
	free(buf);
	if (err) {
		close(fd);
		return err;
	}
	return fd;
}

int mfd_reopen(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return neg_errno(open(path, flags));
}

/*
 * A kernel without the flag, and one whose only store can't keep the promise,
 * both say EINVAL to the plainest request there is.
 */
const char *mfd_missing(void)
{
	int fd = mfd_create(MFD_INACCESSIBLE | store.flags);

	if (fd == -EINVAL)
		return "memfd_create() with MFD_INACCESSIBLE";
	if (fd == -ENODEV || fd == -ENOENT)
		return "huge pages of that size";
	if (fd >= 0)
		close(fd);
	return NULL;
}

const char *late_seal_missing(void)
{
	int fd = mfd_ordinary(0, UNIT);
	int err;

	if (fd < 0)
		return "memfd_create() with MFD_ALLOW_SEALING";
	err = late_seal(fd);
	close(fd);
	return err == -EINVAL ? "F_ADD_SEALS with F_SEAL_INACCESSIBLE" : NULL;
}

int do_fallocate(int fd, int mode, off_t offset, off_t len)
{
	return neg_errno(fallocate(fd, mode, offset, len));
}

int do_ftruncate(int fd, off_t size)
{
	return neg_errno(ftruncate(fd, size));
}

int do_add_seals(int fd, unsigned int seals)
{
	return neg_errno(fcntl(fd, F_ADD_SEALS, seals));
}

int late_seal(int fd)
{
	return do_add_seals(fd, F_SEAL_INACCESSIBLE);
}

unsigned char fill_byte(size_t offset)
{
	/* Differs between neighbouring bytes, pages and huge pages; never 0. */
	return 1 + (offset + (offset >> 12) * 7 + (offset >> 21) * 31) % 251;
}

/*
 * The fill of @offset ff., good for up to *@len bytes: within a page it just
 * counts up, so the fill of any page is a part of these bytes.
 */
static const unsigned char *fill_part(size_t offset, size_t *len)
{
	static unsigned char count[251 + 4096];
	size_t i, rest = 4096 - offset % 4096;

	for (i = 0; !count[0] && i < sizeof(count); i++)
		count[sizeof(count) - 1 - i] = 1 + (sizeof(count) - 1 - i) % 251;
	if (*len > rest)
		*len = rest;
	return count + fill_byte(offset) - 1;
}

void fill(void *buf, size_t offset, size_t len)
{
	size_t done, part;

	for (done = 0; done < len; done += part) {
		const unsigned char *p;

		part = len - done;
		p = fill_part(offset + done, &part);
		memcpy(buf + done, p, part);
	}
}

ssize_t fill_mismatch(const void *buf, size_t offset, size_t len)
{
	size_t done, part;

	for (done = 0; done < len; done += part) {
		const unsigned char *p, *got = buf + done;

		part = len - done;
		p = fill_part(offset + done, &part);
		if (memcmp(got, p, part)) {
			while (*got == *p)
				got++, p++;
			return got - (const unsigned char *)buf;
		}
	}
	return -1;
}

off_t file_size(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? -1 : st.st_size;
}

long blocks_pages(int fd)
{
	struct stat st;

	if (fstat(fd, &st) || st.st_blocks * 512 % UNIT)
		return -1;
	return st.st_blocks * 512 / UNIT;
}

/*
 * Read the map of the file with lseek(), checking that its answers agree with
 * each other: data at or after where it was asked, a hole after data, and the
 * end of the file as the last hole. The file offset is put back.
 */
bool map_read(int fd, unsigned char *map, size_t nr)
{
	off_t end = nr * UNIT, pos = 0, saved = lseek(fd, 0, SEEK_CUR);
	off_t size = file_size(fd);
	bool ok = false;

	memset(map, 0, nr);
	while (pos < end) {
		off_t data = lseek(fd, pos, SEEK_DATA);
		off_t hole;

		if (data < 0 && errno == ENXIO) {
			ok = lseek(fd, pos, SEEK_HOLE) == pos;
			goto out;
		}
		if (data < pos || data % UNIT || data >= end)
			goto out;
		if (data > pos && lseek(fd, pos, SEEK_HOLE) != pos)
			goto out;
		hole = lseek(fd, data, SEEK_HOLE);
		/* Where the file ends is a hole, even within a page. */
		if (hole == size && size > end - (off_t)UNIT)
			hole = end;
		if (hole <= data || hole % UNIT || hole > end)
			goto out;
		memset(map + data / UNIT, 1, (hole - data) / UNIT);
		pos = hole;
	}
	ok = true;
out:
	if (lseek(fd, saved, SEEK_SET) != saved)
		ok = false;
	return ok;
}

bool __model_differs(int fd, const unsigned char *model, size_t nr, const char *file, int line)
{
	unsigned char *map = malloc(nr);
	long want = 0, got = blocks_pages(fd);
	bool differs = false;
	size_t i;

	if (!map || !map_read(fd, map, nr)) {
		fprintf(stderr, "# %s:%d: lseek() contradicts itself, errno %d\n",
			file, line, errno);
		free(map);
		return true;
	}
	for (i = 0; i < nr; i++) {
		want += model[i];
		if (map[i] != model[i] && !differs) {
			fprintf(stderr, "# %s:%d: page %zu is %s, expected %s\n", file, line, i,
				map[i] ? "data" : "a hole", model[i] ? "data" : "a hole");
			differs = true;
		}
	}
	if (got != want) {
		fprintf(stderr, "# %s:%d: st_blocks is %ld pages, expected %ld\n",
			file, line, got, want);
		differs = true;
	}
	free(map);
	return differs;
}

void file_state_get(int fd, struct file_state *st)
{
	struct stat s;

	memset(st, 0, sizeof(*st));
	if (fstat(fd, &s)) {
		st->s.size = -errno;
		return;
	}
	st->s.size = s.st_size;
	st->s.blocks = s.st_blocks;
	st->s.mode = s.st_mode;
	st->s.nlink = s.st_nlink;
	st->s.seals = fcntl(fd, F_GET_SEALS);
	st->pos = lseek(fd, 0, SEEK_CUR);
	/* Files of the maximal size have no map that could be kept. */
	st->nr = s.st_size < (1LL << 32) ? (s.st_size + UNIT - 1) / UNIT : 0;
	if (st->nr) {
		st->map = malloc(st->nr);
		if (!st->map || !map_read(fd, st->map, st->nr))
			st->s.size = -EIO;
	}
}

bool __file_state_changed(int fd, struct file_state *st, const char *file, int line)
{
	struct file_state cur;
	bool changed;

	file_state_get(fd, &cur);
	changed = memcmp(&cur.s, &st->s, sizeof(cur.s)) || cur.pos != st->pos || cur.s.size < 0 ||
		  (cur.nr && memcmp(cur.map, st->map, cur.nr));
	if (changed)
		fprintf(stderr,
			"# %s:%d: file changed: size %lld -> %lld, blocks %lld -> %lld, mode %o -> %o, seals %x -> %x, offset %lld -> %lld%s\n",
			file, line, st->s.size, cur.s.size, st->s.blocks, cur.s.blocks, st->s.mode,
			cur.s.mode, st->s.seals, cur.s.seals, (long long)st->pos,
			(long long)cur.pos,
			cur.nr == st->nr && cur.nr && memcmp(cur.map, st->map, cur.nr) ?
				", map" : "");
	free(cur.map);
	free(st->map);
	st->map = NULL;
	return changed;
}

/* ---- knobs ---- */

static struct knob {
	char path[128];
	char value[64];
	struct knob *next;
} *knobs;

int write_file(const char *path, const char *fmt, ...)
{
	char text[256];
	va_list ap;
	int fd, len;
	ssize_t ret;

	va_start(ap, fmt);
	len = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);

	fd = open(path, O_WRONLY);
	if (fd < 0)
		return -errno;
	ret = write(fd, text, len);
	ret = ret == len ? 0 : ret < 0 ? -errno : -EIO;
	close(fd);
	return ret;
}

static ssize_t read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY);
	size_t len = 0;
	ssize_t ret;

	if (fd < 0)
		return -errno;
	do {
		ret = read(fd, text + len, size - 1 - len);
		if (ret > 0)
			len += ret;
	} while (ret > 0 && len < size - 1);
	text[len] = 0;
	close(fd);
	return len;
}

int knob_read(const char *path, char *value, size_t size)
{
	char text[256], *from = text, *to;
	ssize_t len = read_file(path, text, sizeof(text));

	if (len < 0)
		return len;
	/* "always [never]" names the one in force in brackets. */
	to = strchr(text, '[');
	if (to)
		from = to + 1;
	to = from + strcspn(from, "]\n");
	*to = 0;
	snprintf(value, size, "%s", from);
	return 0;
}

long knob_number(const char *path)
{
	char value[32];

	return knob_read(path, value, sizeof(value)) ? -1 : atol(value);
}

int knob_set(const char *path, const char *value)
{
	struct knob *k = malloc(sizeof(*k));
	int err;

	if (!k)
		return -ENOMEM;
	snprintf(k->path, sizeof(k->path), "%s", path);
	err = knob_read(path, k->value, sizeof(k->value));
	if (!err)
		err = write_file(path, "%s", value);
	if (err) {
		free(k);
		return err;
	}
	k->next = knobs;
	knobs = k;
	return 0;
}

void knobs_restore(void)
{
	struct knob *k;

	while ((k = knobs)) {
		if (write_file(k->path, "%s", k->value))
			fprintf(stderr, "# cannot restore %s to %s\n", k->path, k->value);
		knobs = k->next;
		free(k);
	}
}

static long find_number(const char *text, const char *key)
{
	size_t len = strlen(key);
	const char *p = text;

	while (p) {
		if (!strncmp(p, key, len) && strchr(": \t", p[len]))
			return strtol(p + len + 1, NULL, 10);
		p = strchr(p, '\n');
		if (p)
			p++;
	}
	return -1;
}

long meminfo_kb(const char *name)
{
	char text[8192];

	return read_file("/proc/meminfo", text, sizeof(text)) < 0 ? -1 : find_number(text, name);
}

/* ---- memory control groups ---- */

static char cgroup_root[128];

static const char *cgroup_find(void)
{
	char line[512], where[128];
	FILE *f;

	if (cgroup_root[0])
		return NULL;
	f = fopen("/proc/mounts", "r");
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%*s %127s cgroup2 ", where) == 1 && strstr(line, " cgroup2 "))
			snprintf(cgroup_root, sizeof(cgroup_root), "%s", where);
	}
	if (f)
		fclose(f);
	if (!cgroup_root[0]) {
		char dir[] = "/tmp/cgroup2.XXXXXX";

		if (!mkdtemp(dir) && (mkdir("/tmp", 01777) || !mkdtemp(dir)))
			return "a mount point for cgroup2";
		if (mount("none", dir, "cgroup2", 0, NULL))
			return "cgroup2";
		snprintf(cgroup_root, sizeof(cgroup_root), "%s", dir);
	}
	return NULL;
}

const char *memcg_create(struct memcg *cg)
{
	const char *missing = cgroup_find();
	char path[256];

	cg->path[0] = 0;
	if (missing)
		return missing;
	snprintf(path, sizeof(path), "%s/cgroup.subtree_control", cgroup_root);
	if (write_file(path, "+memory"))
		return "the memory controller of cgroup2";
	snprintf(cg->path, sizeof(cg->path), "%.100s/memfd.%d", cgroup_root, getpid());
	if (mkdir(cg->path, 0755) && errno != EEXIST) {
		cg->path[0] = 0;
		return "a cgroup";
	}
	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup_root);
	cg->outside = open(path, O_WRONLY);
	return NULL;
}

/* One more controller for the groups that memcg_create() makes: "+name" */
int cgroup_controller(const char *controller)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/cgroup.subtree_control", cgroup_root);
	return write_file(path, "%s", controller);
}

/* Other options, which hold for all groups */
int cgroup_remount(const char *options)
{
	return mount("none", cgroup_root, "cgroup2", MS_REMOUNT, options) ? -errno : 0;
}

int memcg_write(struct memcg *cg, const char *file, const char *fmt, ...)
{
	char path[256], text[64];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	snprintf(path, sizeof(path), "%s/%s", cg->path, file);
	return write_file(path, "%s", text);
}

long memcg_stat(struct memcg *cg, const char *file, const char *key)
{
	char path[256], text[8192];

	snprintf(path, sizeof(path), "%s/%s", cg->path, file);
	if (read_file(path, text, sizeof(text)) < 0)
		return -1;
	return key ? find_number(text, key) : strtol(text, NULL, 10);
}

int memcg_enter(struct memcg *cg)
{
	return memcg_write(cg, "cgroup.procs", "%d", getpid());
}

int memcg_leave(struct memcg *cg)
{
	return write(cg->outside, "0", 1) == 1 ? 0 : -errno;
}

void memcg_destroy(struct memcg *cg)
{
	int i;

	if (cg->path[0])
		close(cg->outside);
	/* The last task may still be on its way out. */
	for (i = 0; cg->path[0] && i < 100 && rmdir(cg->path); i++)
		usleep(10000);
	cg->path[0] = 0;
}

/* ---- loop devices and swap ---- */

/* Attach @backing to a free loop device, return its open descriptor. */
int loop_attach(int backing, char *dev, size_t size)
{
	int ctl, nr, fd, err, tries;

	ctl = open("/dev/loop-control", O_RDWR);
	if (ctl < 0)
		return -errno;
	for (tries = 0; tries < 10; tries++) {
		nr = ioctl(ctl, LOOP_CTL_GET_FREE);
		if (nr < 0)
			break;
		snprintf(dev, size, "/dev/loop%d", nr);
		fd = open(dev, O_RDWR);
		if (fd < 0)
			break;
		if (!ioctl(fd, LOOP_SET_FD, backing)) {
			close(ctl);
			return fd;
		}
		err = errno;
		close(fd);
		errno = err;
		/* Somebody else was faster. */
		if (err != EBUSY)
			break;
	}
	err = -errno;
	close(ctl);
	return err;
}

const char *swap_on(struct swap_space *sw, size_t size)
{
	/* The header of a swap area: see union swap_header in the kernel */
	struct {
		char boot[1024];
		uint32_t version, last_page, nr_bad;
	} head = { .version = 1, .last_page = size / PAGE - 1 };
	static const char magic[] = "SWAPSPACE2";

	sw->loop = -1;
	sw->backing = mfd_create(0);
	if (sw->backing < 0 || do_ftruncate(sw->backing, size) ||
	    pwrite(sw->backing, &head, sizeof(head), 0) != sizeof(head) ||
	    pwrite(sw->backing, magic, 10, PAGE - 10) != 10)
		return "a file for swap";
	sw->loop = loop_attach(sw->backing, sw->dev, sizeof(sw->dev));
	if (sw->loop < 0)
		return "loop devices (CONFIG_BLK_DEV_LOOP)";
	if (swapon(sw->dev, 0)) {
		swap_off(sw);
		return "swap (CONFIG_SWAP)";
	}
	return NULL;
}

void swap_off(struct swap_space *sw)
{
	if (sw->loop >= 0) {
		swapoff(sw->dev);
		ioctl(sw->loop, LOOP_CLR_FD, 0);
		close(sw->loop);
	}
	if (sw->backing >= 0)
		close(sw->backing);
	sw->loop = -1;
	sw->backing = -1;
}

/* ---- io_uring ---- */

int uring_open(struct uring *ring)
{
	int err;

	memset(ring, 0, sizeof(*ring));
	ring->fd = syscall(__NR_io_uring_setup, 8, &ring->p);
	if (ring->fd < 0)
		return -errno;
	ring->sq = mmap(NULL, ring->p.sq_off.array + 8 * sizeof(uint32_t), PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQ_RING);
	ring->cq = mmap(NULL, ring->p.cq_off.cqes + 16 * sizeof(struct io_uring_cqe),
			PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd,
			IORING_OFF_CQ_RING);
	ring->sqes = mmap(NULL, 8 * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
	if (ring->sq != MAP_FAILED && ring->cq != MAP_FAILED && ring->sqes != MAP_FAILED)
		return 0;
	err = -errno;
	close(ring->fd);
	return err;
}

void uring_close(struct uring *ring)
{
	munmap(ring->sq, ring->p.sq_off.array + 8 * sizeof(uint32_t));
	munmap(ring->cq, ring->p.cq_off.cqes + 16 * sizeof(struct io_uring_cqe));
	munmap(ring->sqes, 8 * sizeof(struct io_uring_sqe));
	close(ring->fd);
}

int uring_register(struct uring *ring, unsigned int op, const void *arg, unsigned int nr)
{
	return neg_errno(syscall(__NR_io_uring_register, ring->fd, op, arg, nr));
}

/* Submit one request, wait for it and return its result. */
int uring_do(struct uring *ring, const struct io_uring_sqe *sqe)
{
	uint32_t *tail = ring->sq + ring->p.sq_off.tail;
	uint32_t *array = ring->sq + ring->p.sq_off.array;
	uint32_t *head = ring->cq + ring->p.cq_off.head;
	uint32_t slot = *tail % ring->p.sq_entries;
	struct io_uring_cqe *cqes = ring->cq + ring->p.cq_off.cqes;
	int ret;

	ring->sqes[slot] = *sqe;
	array[slot] = slot;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	do {
		ret = syscall(__NR_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
	} while (ret < 0 && errno == EINTR);
	if (ret < 0)
		return -errno;
	ret = cqes[*head % ring->p.cq_entries].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return ret;
}

/* ---- physical memory, as root sees it ---- */

uint64_t pfn_of(const void *addr)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry = 0;

	if (fd < 0)
		return 0;
	if (pread(fd, &entry, sizeof(entry), (uintptr_t)addr / PAGE * sizeof(entry)) !=
	    sizeof(entry))
		entry = 0;
	close(fd);
	/* Bit 63: present; bits 0 to 54: the frame, 0 for the unprivileged */
	return entry >> 63 ? entry & ((1ULL << 55) - 1) : 0;
}

int kcore_open(void)
{
	return neg_errno(open("/proc/kcore", O_RDONLY));
}

/* Read the page frame through the direct map that /proc/kcore describes. */
int kcore_read(int kcore, uint64_t pfn, void *buf)
{
	uint64_t addr = pfn * PAGE;
	struct elf64_hdr ehdr;
	struct elf64_phdr phdr;
	int i;

	if (pread(kcore, &ehdr, sizeof(ehdr), 0) != sizeof(ehdr))
		return -EIO;
	for (i = 0; i < ehdr.e_phnum; i++) {
		if (pread(kcore, &phdr, sizeof(phdr), ehdr.e_phoff + i * sizeof(phdr)) !=
		    sizeof(phdr))
			return -EIO;
		if (phdr.p_type != PT_LOAD || phdr.p_paddr == UINT64_MAX ||
		    addr < phdr.p_paddr || addr + PAGE > phdr.p_paddr + phdr.p_memsz)
			continue;
		if (pread(kcore, buf, PAGE, phdr.p_offset + addr - phdr.p_paddr) == PAGE)
			return 0;
	}
	return -ENOENT;
}

/* ---- time and chance ---- */

unsigned int scale(void)
{
	const char *s = getenv("INACCESSIBLE_SCALE");
	int factor = s ? atoi(s) : 1;

	return factor > 0 ? factor : 1;
}

static unsigned int seed;

void rnd_init(void)
{
	const char *s = getenv("INACCESSIBLE_SEED");

	seed = s ? strtoul(s, NULL, 0) : (unsigned int)time(NULL) ^ (getpid() << 16);
	fprintf(stderr, "# INACCESSIBLE_SEED=%u\n", seed);
}

unsigned int rnd(unsigned int below)
{
	return rand_r(&seed) % below;
}

double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}
