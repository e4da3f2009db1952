// SPDX-License-Identifier: GPL-2.0
/*
 * Memfds that are inaccessible from birth: what memfd_create() gives, and what
 * each call on such a file answers, with nothing changed where it refuses.
 *
 * That no call reaches the content is the subject of inaccessible_access_test,
 * which pages are allocated that of inaccessible_alloc_test.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <linux/fs.h>
#include <linux/memfd.h>

#include "../kselftest_harness.h"
#include "inaccessible_common.h"

/* ---- memfd_create() ---- */

#define NOEXEC_SYSCTL "/proc/sys/vm/memfd_noexec"

FIXTURE(birth)
{
};

FIXTURE_VARIANT(birth)
{
	const char *noexec;
};

/* The sysctl changes what other memfds are. It must not matter here. */
FIXTURE_VARIANT_ADD(birth, noexec_0)
{
	.noexec = "0",
};

FIXTURE_VARIANT_ADD(birth, noexec_1)
{
	.noexec = "1",
};

FIXTURE_VARIANT_ADD(birth, noexec_2)
{
	.noexec = "2",
};

FIXTURE_SETUP(birth)
{
	const char *missing = mfd_missing();

	if (missing)
		SKIP(return, "%s", missing);
	if (knob_set(NOEXEC_SYSCTL, variant->noexec))
		SKIP(return, "%s", NOEXEC_SYSCTL);
}

FIXTURE_TEARDOWN(birth)
{
	knobs_restore();
}

TEST_F(birth, flags)
{
	static const unsigned int flag[] = {
		MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL, MFD_HUGETLB, MFD_HUGE_2MB,
	};
	unsigned int i, combination, made = 0;

	for (combination = 0; combination < 1U << ARRAY_SIZE(flag); combination++) {
		unsigned int flags = MFD_INACCESSIBLE, seals;
		struct stat st;
		int fd;

		for (i = 0; i < ARRAY_SIZE(flag); i++)
			if (combination & (1U << i))
				flags |= flag[i];
		fd = mfd_create(flags);
		/* A store that can't keep the promise says so, and only so. */
		if (flags & (MFD_HUGETLB | MFD_HUGE_2MB) && fd == -EINVAL)
			continue;
		/* No huge pages of that size configured */
		if (flags & MFD_HUGETLB && (fd == -ENODEV || fd == -ENOENT))
			continue;
		ASSERT_GE(fd, 0)
			TH_LOG("flags %#x: %s", flags, strerror(-fd));
		made++;

		seals = F_SEAL_INACCESSIBLE | F_SEAL_EXEC;
		if (!(flags & MFD_ALLOW_SEALING))
			seals |= F_SEAL_SEAL;
		EXPECT_EQ(seals, fcntl(fd, F_GET_SEALS))
			TH_LOG("flags %#x", flags);
		EXPECT_EQ(flags & MFD_CLOEXEC ? FD_CLOEXEC : 0, fcntl(fd, F_GETFD));
		EXPECT_EQ(O_RDWR, fcntl(fd, F_GETFL) & O_ACCMODE);
		ASSERT_EQ(0, fstat(fd, &st));
		EXPECT_EQ(S_IFREG, st.st_mode & S_IFMT);
		EXPECT_EQ(0, st.st_mode & 0111)
			TH_LOG("flags %#x: mode %o", flags, st.st_mode);
		EXPECT_EQ(0, st.st_size);
		EXPECT_EQ(0, st.st_blocks);
		close(fd);
	}
	EXPECT_LE(8, made);
}

TEST_F(birth, refused_flags)
{
	unsigned int bit;

	EXPECT_EQ(-EINVAL, mfd_create(MFD_INACCESSIBLE | MFD_EXEC));
	EXPECT_EQ(-EINVAL, mfd_create(MFD_INACCESSIBLE | MFD_EXEC | MFD_ALLOW_SEALING));
	EXPECT_EQ(-EINVAL, mfd_create(MFD_INACCESSIBLE | MFD_EXEC | MFD_NOEXEC_SEAL));
	EXPECT_EQ(-EINVAL, mfd_create(MFD_INACCESSIBLE | MFD_EXEC | MFD_HUGETLB));
	for (bit = MFD_INACCESSIBLE << 1; bit; bit <<= 1) {
		EXPECT_EQ(-EINVAL, mfd_create(MFD_INACCESSIBLE | bit))
			TH_LOG("flag %#x", bit);
		/* From bit 26 up, MFD_HUGETLB takes the size of its pages. */
		if (bit < 1U << MFD_HUGE_SHIFT)
			EXPECT_EQ(-EINVAL, mfd_create(MFD_INACCESSIBLE | MFD_HUGETLB | bit))
				TH_LOG("flag %#x", bit);
	}
}

TEST_F(birth, refused_names)
{
	char name[NAME_MAX + 1];

	memset(name, 'x', sizeof(name));
	name[NAME_MAX] = 0;
	EXPECT_EQ(-1, syscall(__NR_memfd_create, name, MFD_INACCESSIBLE));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, syscall(__NR_memfd_create, NULL, MFD_INACCESSIBLE));
	EXPECT_EQ(EFAULT, errno);
}

/* ---- one file, each call ---- */

#define UNITS 8

#define NR_HUGEPAGES "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

FIXTURE(file)
{
	int fd;
	size_t unit, size;
	unsigned char model[UNITS];
	struct file_state before;
};

FIXTURE_VARIANT(file)
{
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(file, shmem)
{
	.flags = 0,
};

FIXTURE_VARIANT_ADD(file, hugetlb)
{
	.flags = MFD_HUGETLB | MFD_HUGE_2MB,
};

/* A file of UNITS units, of which 2 and 3 are private. */
FIXTURE_SETUP(file)
{
	const char *missing = mfd_missing();

	self->fd = -1;
	if (missing)
		SKIP(return, "%s", missing);
	self->unit = PAGE;
	if (variant->flags) {
		self->unit = 2UL << 20;
		self->fd = mfd_create(MFD_INACCESSIBLE | variant->flags);
		if (self->fd < 0)
			SKIP(return, "hugetlbfs as an inaccessible store");
		close(self->fd);
		self->fd = -1;
		if (knob_set(NR_HUGEPAGES, "8"))
			SKIP(return, "huge pages of 2 MiB");
		if (meminfo_kb("HugePages_Free") < UNITS) {
			knobs_restore();
			SKIP(return, "%d free huge pages of 2 MiB", UNITS);
		}
	}
	self->size = UNITS * self->unit;
	self->fd = mfd_sealed(variant->flags | MFD_ALLOW_SEALING, self->size);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, do_fallocate(self->fd, 0, 2 * self->unit, 2 * self->unit));
	file_state_get(self->fd, &self->before);
	ASSERT_EQ((long long)self->size, self->before.s.size);
	ASSERT_EQ((long long)(2 * self->unit / 512), self->before.s.blocks);
}

FIXTURE_TEARDOWN(file)
{
	if (self->fd >= 0)
		close(self->fd);
	knobs_restore();
}

#define unchanged() file_state_same(self->fd, &self->before)

static bool file_state_same(int fd, struct file_state *st)
{
	bool changed = file_state_changed(fd, st);

	file_state_get(fd, st);
	return !changed;
}

/* Compare with a model that has one byte for a unit. */
static bool units_differ(int fd, const unsigned char *model, size_t unit)
{
	size_t pages = unit / PAGE, i;
	unsigned char *wide = malloc(UNITS * pages);
	bool differs;

	for (i = 0; i < UNITS; i++)
		model_set(wide, i * pages, pages, model[i]);
	differs = model_differs(fd, wide, UNITS * pages);
	free(wide);
	return differs;
}

TEST_F(file, size_is_set_once)
{
	const off_t unit = self->unit;
	off_t odd[] = { 1, 511, 512, unit - 1, unit + 1, unit / 2, 3 * unit - 1, LLONG_MAX };
	unsigned int i;
	int fd;

	fd = mfd_sealed(variant->flags, 0);
	ASSERT_LE(0, fd);
	EXPECT_EQ(0, do_ftruncate(fd, 0));
	EXPECT_EQ(-EINVAL, do_ftruncate(fd, -1));
	EXPECT_EQ(-EINVAL, do_ftruncate(fd, -unit));
	for (i = 0; i < ARRAY_SIZE(odd); i++) {
		EXPECT_EQ(-EINVAL, do_ftruncate(fd, odd[i]))
			TH_LOG("size %lld", (long long)odd[i]);
		EXPECT_EQ(0, file_size(fd));
	}
	/* A refusal, or the size 0, has not used up the one time. */
	EXPECT_EQ(0, do_ftruncate(fd, 3 * unit));
	EXPECT_EQ(3 * unit, file_size(fd));
	EXPECT_EQ(0, do_ftruncate(fd, 3 * unit));
	close(fd);

	EXPECT_EQ(-EPERM, do_ftruncate(self->fd, 0));
	EXPECT_EQ(-EPERM, do_ftruncate(self->fd, self->size - unit));
	EXPECT_EQ(-EPERM, do_ftruncate(self->fd, self->size + unit));
	EXPECT_EQ(-EPERM, do_ftruncate(self->fd, self->size - 1));
	EXPECT_EQ(-EPERM, do_ftruncate(self->fd, self->size + 1));
	EXPECT_EQ(-EPERM, do_ftruncate(self->fd, LLONG_MAX));
	EXPECT_EQ(-EINVAL, do_ftruncate(self->fd, -1));
	EXPECT_TRUE(unchanged());
	EXPECT_EQ(0, do_ftruncate(self->fd, self->size));
	EXPECT_TRUE(unchanged());
}

TEST_F(file, size_by_path)
{
	char path[64];
	int fd, ro;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	EXPECT_EQ(-1, truncate(path, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(-1, truncate(path, self->size + self->unit));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(-EPERM, mfd_reopen(self->fd, O_RDWR | O_TRUNC));
	EXPECT_EQ(-EPERM, mfd_reopen(self->fd, O_WRONLY | O_TRUNC));
	EXPECT_TRUE(unchanged());
	EXPECT_EQ(0, truncate(path, self->size));
	EXPECT_TRUE(unchanged());

	ro = mfd_reopen(self->fd, O_RDONLY);
	ASSERT_LE(0, ro);
	EXPECT_EQ(-EINVAL, do_ftruncate(ro, self->size));
	EXPECT_EQ(-EINVAL, do_ftruncate(ro, 0));
	close(ro);

	fd = mfd_sealed(variant->flags, 0);
	ASSERT_LE(0, fd);
	ro = mfd_reopen(fd, O_RDWR | O_TRUNC);
	EXPECT_LE(0, ro);
	close(ro);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	EXPECT_EQ(-1, truncate(path, self->unit - 1));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(0, truncate(path, self->unit));
	EXPECT_EQ((off_t)self->unit, file_size(fd));
	close(fd);
}

TEST_F(file, size_limits)
{
	struct rlimit old, lim;
	int fd;

	/* Setting the size is growth as any other: F_SEAL_GROW forbids it. */
	fd = mfd_sealed(variant->flags | MFD_ALLOW_SEALING, 0);
	ASSERT_LE(0, fd);
	EXPECT_EQ(0, do_add_seals(fd, F_SEAL_GROW));
	EXPECT_EQ(-EPERM, do_ftruncate(fd, self->unit));
	EXPECT_EQ(0, file_size(fd));
	close(fd);

	fd = mfd_sealed(variant->flags, 0);
	ASSERT_LE(0, fd);
	signal(SIGXFSZ, SIG_IGN);
	ASSERT_EQ(0, getrlimit(RLIMIT_FSIZE, &old));
	lim = old;
	lim.rlim_cur = 2 * self->unit;
	ASSERT_EQ(0, setrlimit(RLIMIT_FSIZE, &lim));
	EXPECT_EQ(-EFBIG, do_ftruncate(fd, 3 * self->unit));
	EXPECT_EQ(0, file_size(fd));
	EXPECT_EQ(0, do_ftruncate(fd, 2 * self->unit));
	/* The limit is on size; allocating inside the size is not growth. */
	lim.rlim_cur = self->unit;
	ASSERT_EQ(0, setrlimit(RLIMIT_FSIZE, &lim));
	EXPECT_EQ(0, do_fallocate(fd, 0, self->unit, self->unit));
	EXPECT_EQ(0, do_fallocate(fd, PUNCH, self->unit, self->unit));
	ASSERT_EQ(0, setrlimit(RLIMIT_FSIZE, &old));
	close(fd);
}

TEST_F(file, size_maximal)
{
	const off_t unit = self->unit, size = LLONG_MAX & -unit;
	int fd, err;

	fd = mfd_sealed(variant->flags, 0);
	ASSERT_LE(0, fd);
	err = do_ftruncate(fd, size);
	if (variant->flags && err == -EINVAL) {
		close(fd);
		SKIP(return, "hugetlbfs files of %lld bytes", (long long)size);
	}
	ASSERT_EQ(0, err);
	EXPECT_EQ(0, do_fallocate(fd, 0, size - unit, unit));
	EXPECT_EQ(size - unit, lseek(fd, 0, SEEK_DATA));
	EXPECT_EQ(size, lseek(fd, size - unit, SEEK_HOLE));
	EXPECT_EQ(0, lseek(fd, 0, SEEK_HOLE));
	EXPECT_EQ((long)(unit / PAGE), blocks_pages(fd));
	EXPECT_EQ(-EINVAL, do_fallocate(fd, 0, size - 1, 1));
	EXPECT_EQ(-EINVAL, do_fallocate(fd, 0, 1, size - 1));
	EXPECT_EQ(0, do_fallocate(fd, PUNCH, 0, size));
	EXPECT_EQ(-1, lseek(fd, 0, SEEK_DATA));
	EXPECT_EQ(ENXIO, errno);
	EXPECT_EQ(0, blocks_pages(fd));
	close(fd);
}

TEST_F(file, allocate_every_range)
{
	const off_t unit = self->unit;
	unsigned char old[UNITS];
	off_t from, nr;

	ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, 0, self->size));
	for (from = 0; from < UNITS; from++) {
		for (nr = 1; from + nr <= UNITS; nr++) {
			/* Alternate the two modes that mean the same here. */
			int mode = nr & 1 ? 0 : FALLOC_FL_KEEP_SIZE;

			ASSERT_EQ(0, do_fallocate(self->fd, mode, from * unit, nr * unit));
			memset(old, 0, UNITS);
			memset(old + from, 1, nr);
			ASSERT_FALSE(units_differ(self->fd, old, unit))
				TH_LOG("allocated %lld+%lld", (long long)from, (long long)nr);
			/* Again over what is there already: nothing changes. */
			ASSERT_EQ(0, do_fallocate(self->fd, mode, from * unit, nr * unit));
			ASSERT_FALSE(units_differ(self->fd, old, unit));
			ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, from * unit, nr * unit));
			memset(old, 0, UNITS);
			ASSERT_FALSE(units_differ(self->fd, old, unit))
				TH_LOG("punched %lld+%lld", (long long)from, (long long)nr);
		}
	}
}

TEST_F(file, punch_every_range)
{
	const off_t unit = self->unit;
	unsigned char old[UNITS];
	off_t from, nr;

	for (from = 0; from < UNITS; from++) {
		for (nr = 1; from + nr <= UNITS; nr++) {
			ASSERT_EQ(0, do_fallocate(self->fd, 0, 0, self->size));
			ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, from * unit, nr * unit));
			memset(old, 1, UNITS);
			memset(old + from, 0, nr);
			ASSERT_FALSE(units_differ(self->fd, old, unit))
				TH_LOG("punched %lld+%lld", (long long)from, (long long)nr);
			/* Holes may be punched again. */
			ASSERT_EQ(0, do_fallocate(self->fd, PUNCH, from * unit, nr * unit));
			ASSERT_FALSE(units_differ(self->fd, old, unit));
		}
	}
}

static const int conversions[] = { 0, FALLOC_FL_KEEP_SIZE, PUNCH };

TEST_F(file, unaligned)
{
	const off_t unit = self->unit, size = self->size;
	const struct {
		off_t offset, len;
	} range[] = {
		{ 1, unit }, { unit - 1, unit }, { unit + 1, unit - 1 }, { 2 * unit + 1, unit - 1 },
		{ 0, 1 }, { 0, unit - 1 }, { 0, unit + 1 }, { 2 * unit, unit / 2 },
		{ unit / 2, unit / 2 }, { unit / 2, unit }, { 512, 512 }, { 1, size - 1 },
		{ 1, 1 }, { 0, size - 1 }, { size - 1, 1 }, { 2 * unit + 1, 2 * unit - 2 },
		/* aligned to the page, yet not to the huge page */
		{ unit > (off_t)PAGE ? (off_t)PAGE : 2 * unit + 512, unit },
	};
	unsigned int i, j;

	for (i = 0; i < ARRAY_SIZE(range); i++) {
		for (j = 0; j < ARRAY_SIZE(conversions); j++) {
			EXPECT_EQ(-EINVAL, do_fallocate(self->fd, conversions[j], range[i].offset,
							range[i].len))
				TH_LOG("mode %d, %lld+%lld", conversions[j],
				       (long long)range[i].offset, (long long)range[i].len);
			EXPECT_TRUE(unchanged());
		}
	}
}

TEST_F(file, past_size)
{
	const off_t unit = self->unit, size = self->size;
	const off_t max = LLONG_MAX & -unit;
	const struct {
		off_t offset, len;
	} range[] = {
		{ 0, size + unit }, { unit, size }, { size - unit, 2 * unit }, { size, unit },
		{ size + unit, unit }, { 2 * size, size }, { 0, max }, { unit, max - unit },
		{ max - unit, unit }, { size, max - size }, { 1LL << 44, unit },
	};
	unsigned int i, j;

	for (i = 0; i < ARRAY_SIZE(range); i++) {
		for (j = 0; j < ARRAY_SIZE(conversions); j++) {
			EXPECT_EQ(-EINVAL, do_fallocate(self->fd, conversions[j], range[i].offset,
							range[i].len))
				TH_LOG("mode %d, %lld+%lld", conversions[j],
				       (long long)range[i].offset, (long long)range[i].len);
			EXPECT_TRUE(unchanged());
		}
	}
}

/* What the VFS finds first keeps its errno; and changes nothing either. */
TEST_F(file, senseless_ranges)
{
	const off_t unit = self->unit;
	const off_t max = LLONG_MAX & -unit;
	const struct {
		off_t offset, len;
		int err;
	} range[] = {
		{ 0, 0, EINVAL }, { unit, 0, EINVAL }, { (off_t)self->size, 0, EINVAL },
		{ -1, unit, EINVAL }, { -unit, unit, EINVAL }, { -unit, 2 * unit, EINVAL },
		{ 0, -1, EINVAL }, { unit, -unit, EINVAL }, { LLONG_MIN, unit, EINVAL },
		{ 0, LLONG_MIN, EINVAL }, { LLONG_MIN, LLONG_MIN, EINVAL },
		{ unit, max, EFBIG }, { max, unit, EFBIG }, { max, max, EFBIG },
		{ LLONG_MAX, LLONG_MAX, EFBIG }, { LLONG_MAX, 1, EFBIG }, { 1, LLONG_MAX, EFBIG },
	};
	unsigned int i, j;

	for (i = 0; i < ARRAY_SIZE(range); i++) {
		for (j = 0; j < ARRAY_SIZE(conversions); j++) {
			EXPECT_EQ(-range[i].err, do_fallocate(self->fd, conversions[j],
							      range[i].offset, range[i].len))
				TH_LOG("mode %d, %lld+%lld", conversions[j],
				       (long long)range[i].offset, (long long)range[i].len);
			EXPECT_TRUE(unchanged());
		}
	}
}

TEST_F(file, other_modes)
{
	static const int modes[] = {
		FALLOC_FL_PUNCH_HOLE,
		FALLOC_FL_ZERO_RANGE,
		FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_COLLAPSE_RANGE,
		FALLOC_FL_INSERT_RANGE,
		FALLOC_FL_UNSHARE_RANGE,
		FALLOC_FL_UNSHARE_RANGE | FALLOC_FL_KEEP_SIZE,
		PUNCH | FALLOC_FL_ZERO_RANGE,
		PUNCH | FALLOC_FL_UNSHARE_RANGE,
		0x04 | FALLOC_FL_KEEP_SIZE,
		0x80, 0x80 | FALLOC_FL_KEEP_SIZE, 1 << 30, INT_MIN, -1,
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		EXPECT_EQ(-EOPNOTSUPP, do_fallocate(self->fd, modes[i], 0, self->size))
			TH_LOG("mode %#x", modes[i]);
		EXPECT_EQ(-EOPNOTSUPP, do_fallocate(self->fd, modes[i], 2 * self->unit, self->unit))
			TH_LOG("mode %#x", modes[i]);
		EXPECT_TRUE(unchanged());
	}
}

TEST_F(file, empty_file)
{
	int fd = mfd_sealed(variant->flags, 0);
	unsigned int i;

	ASSERT_LE(0, fd);
	for (i = 0; i < ARRAY_SIZE(conversions); i++)
		EXPECT_EQ(-EINVAL, do_fallocate(fd, conversions[i], 0, self->unit))
			TH_LOG("mode %d", conversions[i]);
	EXPECT_EQ(0, file_size(fd));
	EXPECT_EQ(0, blocks_pages(fd));
	EXPECT_EQ(-1, lseek(fd, 0, SEEK_DATA));
	EXPECT_EQ(ENXIO, errno);
	close(fd);
}

TEST_F(file, read_only_descriptor)
{
	int ro = mfd_reopen(self->fd, O_RDONLY);
	unsigned int i;

	ASSERT_LE(0, ro);
	for (i = 0; i < ARRAY_SIZE(conversions); i++)
		EXPECT_EQ(-EBADF, do_fallocate(ro, conversions[i], 0, self->unit));
	EXPECT_EQ(-EPERM, do_add_seals(ro, F_SEAL_SHRINK));
	EXPECT_TRUE(unchanged());
	EXPECT_EQ((int)self->before.s.seals, fcntl(ro, F_GET_SEALS));
	/* The map may be looked at through it. */
	EXPECT_EQ(2 * (off_t)self->unit, lseek(ro, 0, SEEK_DATA));
	EXPECT_EQ(4 * (off_t)self->unit, lseek(ro, 2 * self->unit, SEEK_HOLE));
	close(ro);
}

TEST_F(file, seek)
{
	const off_t unit = self->unit, size = self->size;
	off_t pos;

	for (pos = 0; pos < size; pos += unit / 2) {
		off_t data = pos < 2 * unit ? 2 * unit : pos < 4 * unit ? pos : -1;
		off_t hole = pos < 2 * unit ? pos : pos < 4 * unit ? 4 * unit : pos;

		EXPECT_EQ(data, lseek(self->fd, pos, SEEK_DATA))
			TH_LOG("from %lld", (long long)pos);
		if (data < 0)
			EXPECT_EQ(ENXIO, errno);
		EXPECT_EQ(hole, lseek(self->fd, pos, SEEK_HOLE))
			TH_LOG("from %lld", (long long)pos);
	}
	for (pos = size; pos > 0 && pos <= size + unit; pos += unit) {
		EXPECT_EQ(-1, lseek(self->fd, pos, SEEK_DATA));
		EXPECT_EQ(ENXIO, errno);
		EXPECT_EQ(-1, lseek(self->fd, pos, SEEK_HOLE));
		EXPECT_EQ(ENXIO, errno);
	}
	EXPECT_EQ(-1, lseek(self->fd, -1, SEEK_DATA));
	EXPECT_EQ(-1, lseek(self->fd, -unit, SEEK_HOLE));
	EXPECT_EQ(-1, lseek(self->fd, 0, 5));
	EXPECT_EQ(EINVAL, errno);

	EXPECT_EQ(unit, lseek(self->fd, unit, SEEK_SET));
	EXPECT_EQ(unit + 1, lseek(self->fd, 1, SEEK_CUR));
	EXPECT_EQ(size, lseek(self->fd, 0, SEEK_END));
	EXPECT_EQ(-1, lseek(self->fd, -1, SEEK_SET));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(size, lseek(self->fd, 0, SEEK_CUR));

	/* With data up to the end, the end is the hole. */
	ASSERT_EQ(0, do_fallocate(self->fd, 0, 0, size));
	EXPECT_EQ(0, lseek(self->fd, 0, SEEK_DATA));
	EXPECT_EQ(size, lseek(self->fd, 0, SEEK_HOLE));
	EXPECT_EQ(size - 1, lseek(self->fd, size - 1, SEEK_DATA));
}

TEST_F(file, seals)
{
	const unsigned int born = F_SEAL_INACCESSIBLE | F_SEAL_EXEC;
	int fd;

	EXPECT_EQ(-EPERM, do_add_seals(self->fd, F_SEAL_WRITE));
	EXPECT_EQ(-EPERM, do_add_seals(self->fd, F_SEAL_FUTURE_WRITE));
	EXPECT_EQ(-EPERM, do_add_seals(self->fd, F_SEAL_WRITE | F_SEAL_FUTURE_WRITE));
	EXPECT_EQ(-EPERM, do_add_seals(self->fd, F_SEAL_WRITE | F_SEAL_SHRINK));
	EXPECT_EQ(-EPERM, do_add_seals(self->fd, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL));
	EXPECT_EQ(-EINVAL, do_add_seals(self->fd, 0x0080));
	EXPECT_EQ(-EINVAL, do_add_seals(self->fd, 0x80000000));
	EXPECT_EQ(-EINVAL, do_add_seals(self->fd, F_SEAL_SHRINK | 0x0100));
	EXPECT_TRUE(unchanged());

	EXPECT_EQ(0, do_add_seals(self->fd, 0));
	EXPECT_EQ(0, do_add_seals(self->fd, F_SEAL_EXEC));
	EXPECT_EQ(born, fcntl(self->fd, F_GET_SEALS));
	EXPECT_EQ(0, do_add_seals(self->fd, F_SEAL_SHRINK | F_SEAL_GROW));
	EXPECT_EQ(born | F_SEAL_SHRINK | F_SEAL_GROW, fcntl(self->fd, F_GET_SEALS));

	/* Seals on size don't freeze conversions inside the size. */
	EXPECT_EQ(0, do_fallocate(self->fd, 0, 0, self->unit));
	EXPECT_EQ(0, do_fallocate(self->fd, PUNCH, 0, self->unit));
	EXPECT_EQ(0, do_add_seals(self->fd, F_SEAL_SEAL));
	EXPECT_EQ(-EPERM, do_add_seals(self->fd, F_SEAL_EXEC));
	EXPECT_EQ(-EPERM, do_add_seals(self->fd, F_SEAL_WRITE));
	EXPECT_EQ(0, do_fallocate(self->fd, 0, 0, self->unit));
	EXPECT_EQ(0, do_fallocate(self->fd, PUNCH, 0, self->unit));

	fd = mfd_sealed(variant->flags, self->size);
	ASSERT_LE(0, fd);
	EXPECT_EQ(-EPERM, do_add_seals(fd, F_SEAL_SHRINK));
	EXPECT_EQ(born | F_SEAL_SEAL, fcntl(fd, F_GET_SEALS));
	close(fd);
}

TEST_F(file, never_executable)
{
	char path[64];
	unsigned int bit;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	for (bit = 0; bit < 3; bit++) {
		EXPECT_EQ(-1, fchmod(self->fd, 0666 | (1 << 3 * bit)));
		EXPECT_EQ(EPERM, errno);
	}
	EXPECT_EQ(-1, fchmod(self->fd, 0777));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(-1, chmod(path, 0755));
	EXPECT_EQ(EPERM, errno);
	EXPECT_TRUE(unchanged());

	EXPECT_EQ(0, fchmod(self->fd, 0600));
	file_state_get(self->fd, &self->before);
	EXPECT_EQ(S_IFREG | 0600, self->before.s.mode);
	EXPECT_EQ(-1, access(path, X_OK));
}

/* FS_IOC_RESVSP and friends come to ->fallocate by a door of their own. */
TEST_F(file, preallocation_ioctls)
{
	struct space_resv {
		int16_t type, whence;
		int64_t start, len;
		int32_t sysid;
		uint32_t pid;
		int32_t pad[4];
	} sr = { .whence = SEEK_SET };
	const unsigned long resvsp = _IOW('X', 40, struct space_resv);
	const unsigned long unresvsp = _IOW('X', 41, struct space_resv);
	const unsigned long resvsp64 = _IOW('X', 42, struct space_resv);
	const unsigned long unresvsp64 = _IOW('X', 43, struct space_resv);
	const unsigned long zero_range = _IOW('X', 57, struct space_resv);

	sr.start = 0;
	sr.len = 1;
	EXPECT_EQ(-1, ioctl(self->fd, resvsp, &sr));
	EXPECT_EQ(EINVAL, errno);
	sr.start = self->unit / 2;
	sr.len = self->unit;
	EXPECT_EQ(-1, ioctl(self->fd, unresvsp64, &sr));
	EXPECT_EQ(EINVAL, errno);
	sr.start = self->size;
	EXPECT_EQ(-1, ioctl(self->fd, resvsp64, &sr));
	EXPECT_EQ(EINVAL, errno);
	sr.start = 2 * self->unit;
	EXPECT_EQ(-1, ioctl(self->fd, zero_range, &sr));
	EXPECT_EQ(EOPNOTSUPP, errno);
	EXPECT_TRUE(unchanged());

	sr.start = 7 * self->unit;
	EXPECT_EQ(0, ioctl(self->fd, resvsp, &sr));
	memcpy(self->model, "\0\0\1\1\0\0\0\1", UNITS);
	EXPECT_FALSE(units_differ(self->fd, self->model, self->unit));
	sr.start = 2 * self->unit;
	EXPECT_EQ(0, ioctl(self->fd, unresvsp, &sr));
	memcpy(self->model, "\0\0\0\1\0\0\0\1", UNITS);
	EXPECT_FALSE(units_differ(self->fd, self->model, self->unit));
}

TEST_F(file, conversions_by_io_uring)
{
	struct io_uring_sqe sqe = { .fd = self->fd };
	struct uring ring;

	if (uring_open(&ring))
		SKIP(return, "io_uring (CONFIG_IO_URING)");
	sqe.opcode = IORING_OP_FALLOCATE;
	sqe.off = 1;
	sqe.addr = self->unit;
	EXPECT_EQ(-EINVAL, uring_do(&ring, &sqe));
	sqe.off = self->size;
	EXPECT_EQ(-EINVAL, uring_do(&ring, &sqe));
	EXPECT_TRUE(unchanged());
	sqe.off = 0;
	EXPECT_EQ(0, uring_do(&ring, &sqe));
	sqe.off = 3 * self->unit;
	sqe.len = PUNCH;
	EXPECT_EQ(0, uring_do(&ring, &sqe));
	memcpy(self->model, "\1\0\1\0\0\0\0\0", UNITS);
	EXPECT_FALSE(units_differ(self->fd, self->model, self->unit));

	memset(&sqe, 0, sizeof(sqe));
	sqe.opcode = 55;	/* IORING_OP_FTRUNCATE, since 6.9 */
	sqe.fd = self->fd;
	sqe.off = self->size + self->unit;
	EXPECT_EQ(-EPERM, uring_do(&ring, &sqe));
	EXPECT_EQ((off_t)self->size, file_size(self->fd));
	uring_close(&ring);
}

/* ---- other descriptors of the same file are as sealed ---- */

static int pass_fd(int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = "", byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
	int sv[2], got = -1;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, sv))
		return -errno;
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	if (sendmsg(sv[0], &msg, 0) == 1) {
		memset(control, 0, sizeof(control));
		if (recvmsg(sv[1], &msg, 0) == 1)
			memcpy(&got, CMSG_DATA(cmsg), sizeof(int));
	}
	close(sv[0]);
	close(sv[1]);
	return got;
}

static int by_handle(int fd)
{
	struct {
		struct file_handle handle;
		unsigned char space[MAX_HANDLE_SZ];
	} h = { .handle.handle_bytes = MAX_HANDLE_SZ };
	int mount_id;

	if (name_to_handle_at(fd, "", &h.handle, &mount_id, AT_EMPTY_PATH))
		return -errno;
	fd = open_by_handle_at(fd, &h.handle, O_RDWR);
	return fd < 0 ? -errno : fd;
}

/* Sealed like the original: content out of reach, conversions shared. */
static void is_as_sealed(struct __test_metadata *_metadata, int fd, int other, size_t unit)
{
	unsigned int seals = fcntl(fd, F_GET_SEALS);
	char byte = 'x';

	EXPECT_EQ(seals, fcntl(other, F_GET_SEALS));
	EXPECT_EQ(-1, pread(other, &byte, 1, 2 * unit));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ('x', byte);
	EXPECT_EQ(-1, pwrite(other, &byte, 1, 2 * unit));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, unit, PROT_READ, MAP_SHARED, other, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(-EINVAL, do_fallocate(other, PUNCH, 1, unit));
	EXPECT_EQ(-EPERM, do_ftruncate(other, 0));
	EXPECT_EQ(0, do_fallocate(other, 0, 0, unit));
	EXPECT_EQ(0, lseek(fd, 0, SEEK_DATA));
	EXPECT_EQ(0, do_fallocate(fd, PUNCH, 0, unit));
	EXPECT_EQ(2 * (off_t)unit, lseek(other, 0, SEEK_DATA));
	EXPECT_EQ(0, lseek(other, 0, SEEK_SET));
}

TEST_F(file, duplicates)
{
	int fd;

	fd = dup(self->fd);
	ASSERT_LE(0, fd);
	is_as_sealed(_metadata, self->fd, fd, self->unit);
	close(fd);

	fd = pass_fd(self->fd);
	ASSERT_LE(0, fd);
	is_as_sealed(_metadata, self->fd, fd, self->unit);
	close(fd);
	EXPECT_TRUE(unchanged());
}

TEST_F(file, inherited)
{
	int status;
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		/* _metadata is shared with the parent. */
		is_as_sealed(_metadata, self->fd, self->fd, self->unit);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_TRUE(unchanged());
}

TEST_F(file, reopened)
{
	static const int flags[] = {
		O_RDWR, O_RDWR | O_APPEND, O_RDWR | O_SYNC, O_RDWR | O_NONBLOCK, O_RDWR | O_NOATIME,
		O_RDWR | O_DIRECT,
	};
	char byte = 'x';
	unsigned int i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		fd = mfd_reopen(self->fd, flags[i]);
		/* O_DIRECT needs the store's consent, which hugetlbfs denies. */
		if (fd == -EINVAL && flags[i] & O_DIRECT)
			continue;
		ASSERT_LE(0, fd)
			TH_LOG("flags %#x", flags[i]);
		is_as_sealed(_metadata, self->fd, fd, self->unit);
		close(fd);
	}

	fd = mfd_reopen(self->fd, O_RDONLY);
	ASSERT_LE(0, fd);
	EXPECT_EQ(-1, pread(fd, &byte, 1, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, self->unit, PROT_READ, MAP_PRIVATE, fd, 0));
	EXPECT_EQ(EPERM, errno);
	close(fd);

	fd = mfd_reopen(self->fd, O_WRONLY);
	ASSERT_LE(0, fd);
	EXPECT_EQ(-1, pwrite(fd, &byte, 1, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(0, do_fallocate(fd, 0, 0, self->unit));
	EXPECT_EQ(0, do_fallocate(fd, PUNCH, 0, self->unit));
	close(fd);

	fd = mfd_reopen(self->fd, O_PATH);
	ASSERT_LE(0, fd);
	EXPECT_EQ(-1, pread(fd, &byte, 1, 0));
	EXPECT_EQ(EBADF, errno);
	EXPECT_EQ(-EBADF, do_fallocate(fd, 0, 0, self->unit));
	close(fd);
	EXPECT_EQ('x', byte);
	EXPECT_TRUE(unchanged());
}

TEST_F(file, reopened_by_handle)
{
	int fd = by_handle(self->fd);

	if (variant->flags) {
		/* hugetlbfs has no handles. */
		EXPECT_EQ(-EOPNOTSUPP, fd);
		return;
	}
	if (fd == -EOPNOTSUPP || fd == -EPERM || fd == -ESTALE || no_such_call(fd))
		SKIP(return, "open_by_handle_at() on memfds: %s", strerror(-fd));
	ASSERT_LE(0, fd);
	is_as_sealed(_metadata, self->fd, fd, self->unit);
	close(fd);
	EXPECT_TRUE(unchanged());
}

TEST_F(file, last_close_frees)
{
	long before = meminfo_kb("Shmem"), after = 0;
	const size_t size = 64UL << 20;
	int fd, i;

	if (variant->flags)
		before = meminfo_kb("HugePages_Free");
	fd = mfd_sealed(variant->flags, size);
	ASSERT_LE(0, fd);
	if (variant->flags) {
		ASSERT_EQ(0, do_fallocate(fd, 0, 0, 4 * self->unit));
		EXPECT_EQ(before - 4, meminfo_kb("HugePages_Free"));
		close(fd);
		EXPECT_EQ(before, meminfo_kb("HugePages_Free"));
		return;
	}
	ASSERT_EQ(0, do_fallocate(fd, 0, 0, size));
	EXPECT_LE(before + (long)(size >> 10) * 9 / 10, meminfo_kb("Shmem"));
	close(fd);
	/* Counters are kept per CPU, and other tasks use shmem, too. */
	for (i = 0; i < 100; i++) {
		after = meminfo_kb("Shmem");
		if (after < before + (long)(size >> 10) / 10)
			break;
		usleep(10000);
	}
	EXPECT_GT(before + (long)(size >> 10) / 10, after);
}

/* ---- things done to the file or the system around it ---- */

TEST_F(file, immutable_and_append_only)
{
	int flags = 0, attr;

	if (variant->flags) {
		/* hugetlbfs has no attributes. */
		EXPECT_NE(0, ioctl(self->fd, FS_IOC_GETFLAGS, &flags));
		return;
	}
	if (ioctl(self->fd, FS_IOC_GETFLAGS, &flags))
		SKIP(return, "file attributes (CONFIG_TMPFS_XATTR)");
	attr = flags | FS_IMMUTABLE_FL;
	ASSERT_EQ(0, ioctl(self->fd, FS_IOC_SETFLAGS, &attr));
	EXPECT_EQ(-EPERM, do_fallocate(self->fd, 0, 0, self->unit));
	EXPECT_EQ(-EPERM, do_fallocate(self->fd, PUNCH, 2 * self->unit, self->unit));
	EXPECT_EQ(-EPERM, do_ftruncate(self->fd, 0));
	EXPECT_TRUE(unchanged());
	attr = flags | FS_APPEND_FL;
	ASSERT_EQ(0, ioctl(self->fd, FS_IOC_SETFLAGS, &attr));
	EXPECT_EQ(-EPERM, do_fallocate(self->fd, PUNCH, 2 * self->unit, self->unit));
	EXPECT_TRUE(unchanged());
	ASSERT_EQ(0, ioctl(self->fd, FS_IOC_SETFLAGS, &flags));
	EXPECT_TRUE(unchanged());

	/* With the attributes gone, everything is as it was. */
	EXPECT_EQ(0, do_fallocate(self->fd, PUNCH, 2 * self->unit, self->unit));
	EXPECT_EQ(0, do_fallocate(self->fd, 0, 0, self->unit));
	memcpy(self->model, "\1\0\0\1\0\0\0\0", UNITS);
	EXPECT_FALSE(units_differ(self->fd, self->model, self->unit));
}

TEST_F(file, drop_caches)
{
	int i;

	for (i = 0; i < 3; i++) {
		sync();
		if (write_file("/proc/sys/vm/drop_caches", "3"))
			SKIP(return, "/proc/sys/vm/drop_caches");
		EXPECT_TRUE(unchanged());
	}
}

TEST_F(file, compaction)
{
	int i;

	if (write_file("/proc/sys/vm/compact_memory", "1"))
		SKIP(return, "memory compaction (CONFIG_COMPACTION)");
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(0, write_file("/proc/sys/vm/compact_memory", "1"));
		EXPECT_TRUE(unchanged());
	}
	EXPECT_EQ(0, do_fallocate(self->fd, PUNCH, 0, self->size));
	EXPECT_EQ(0, blocks_pages(self->fd));
}

TEST_HARNESS_MAIN
