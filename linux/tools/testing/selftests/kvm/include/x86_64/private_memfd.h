/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Common parts of the tests of KVM_MEM_PRIVATE slots: guest memory whose
 * private half comes from a memfd that nobody can read, write or map.
 *
 * A slot has two halves.  The shared one is ordinary memory at userspace_addr,
 * the private one a range of the memfd.  A page is private exactly when it is
 * allocated in the file: fallocate() makes it private, FALLOC_FL_PUNCH_HOLE
 * makes it shared.
 */
#ifndef SELFTEST_KVM_PRIVATE_MEMFD_H
#define SELFTEST_KVM_PRIVATE_MEMFD_H

#include <dirent.h>
#include <linux/falloc.h>
#include <linux/memfd.h>
#include <linux/sizes.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <time.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

#include "kvm_test_harness.h"

/* Of linux/fcntl.h, which can't be included together with the C library's. */
#ifndef F_SEAL_INACCESSIBLE
#define F_SEAL_INACCESSIBLE	0x0040
#endif

/* What KVM_CAP_PRIVATE_MEM returns. */
#define PRIVATE_MEM_SHMEM	BIT(0)
#define PRIVATE_MEM_HUGETLBFS	BIT(1)
#define PRIVATE_MEM_ALL		(PRIVATE_MEM_SHMEM | PRIVATE_MEM_HUGETLBFS)

/* Above everything that the framework puts into the default slot. */
#define PRIVATE_GPA		((uint64_t)SZ_4G)
#define PRIVATE_SLOT		10

#define PAGES_PER_2M		(SZ_2M / PAGE_SIZE)

/*
 * What the private halves consist of.  All that is converted, by the guest and
 * by the VMM, is converted in units, and tests that speak of pages without
 * saying of what size mean them.
 */
struct private_backing {
	const char *name;
	unsigned int store;		/* bit of KVM_CAP_PRIVATE_MEM */
	unsigned int memfd_flags;
	const char *shmem_enabled;	/* what to write there, NULL for another store */
	uint64_t unit;
	int level;			/* of a mapping of one unit */
};

/* Tests run on the store that this environment variable says, or on shmem. */
#define BACKING_ENV		"PRIVATE_MEMFD_BACKING"

#define MEMFD_HUGE_2MB		(21u << MFD_HUGE_SHIFT)
#define MEMFD_HUGE_1GB		(30u << MFD_HUGE_SHIFT)

static inline const struct private_backing *private_backing(void)
{
	static const struct private_backing backings[] = {
		{ "shmem", PRIVATE_MEM_SHMEM, 0, "never", PAGE_SIZE, PG_LEVEL_4K },
		{ "shmem-huge", PRIVATE_MEM_SHMEM, 0, "always", PAGE_SIZE, PG_LEVEL_4K },
		{ "hugetlb-2m", PRIVATE_MEM_HUGETLBFS, MFD_HUGETLB | MEMFD_HUGE_2MB, NULL,
		  SZ_2M, PG_LEVEL_2M },
		{ "hugetlb-1g", PRIVATE_MEM_HUGETLBFS, MFD_HUGETLB | MEMFD_HUGE_1GB, NULL,
		  SZ_1G, PG_LEVEL_1G },
	};
	static const struct private_backing *backing;
	const char *name;
	int i;

	if (backing)
		return backing;

	name = getenv(BACKING_ENV) ?: backings[0].name;
	for (i = 0; i < ARRAY_SIZE(backings) && !backing; i++)
		if (!strcmp(backings[i].name, name))
			backing = &backings[i];
	TEST_ASSERT(backing, BACKING_ENV ": there is no '%s'", name);
	return backing;
}

/* For the host only: a guest has no environment. */
#define UNIT			(private_backing()->unit)

static inline bool backing_is_hugetlb(void)
{
	return private_backing()->memfd_flags & MFD_HUGETLB;
}

static inline bool backing_is_1g(void)
{
	return private_backing()->level == PG_LEVEL_1G;
}

/* Whether aligned ranges of 2 MiB get a folio of this size, or are in one. */
static inline bool backing_is_huge(void)
{
	return backing_is_hugetlb() || strcmp(private_backing()->shmem_enabled, "never");
}

/*
 * As many units as a test is about, or, where these are huge, as many as there
 * is memory and time for.
 */
static inline uint64_t nr_units(uint64_t of_4k, uint64_t of_2m, uint64_t of_1g)
{
	return backing_is_1g() ? of_1g : backing_is_hugetlb() ? of_2m : of_4k;
}

/* So many words of a unit stand for all of it, the first and the last included. */
#define NR_PROBES		3

/* Seconds for a test that may be slow; enough for a kernel that watches itself. */
#define TIMEOUT		900

/* Tests take longer, or shorter, by this environment variable: in percent. */
static inline unsigned long scaled(unsigned long rounds)
{
	const char *percent = getenv("PRIVATE_MEMFD_PERCENT");

	return percent ? rounds * atoi_positive("PRIVATE_MEMFD_PERCENT", percent) / 100 : rounds;
}

/* Memory that children share with their parent.  It is Shmem, until it is unmapped. */
static inline void *map_for_children(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	TEST_ASSERT(p != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	return p;
}

static inline uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ull + ts.tv_nsec / 1000000;
}

static inline uint64_t *probe(void *page, uint64_t size, int i)
{
	return page + i * (size - sizeof(uint64_t)) / (NR_PROBES - 1) / 8 * 8;
}

static inline uint64_t probe_read(void *page, int i)
{
	return READ_ONCE(*probe(page, UNIT, i));
}

static inline void probe_write(void *page, int i, uint64_t value)
{
	WRITE_ONCE(*probe(page, UNIT, i), value);
}

/* The address of asm_name, which is in assembler code of the test. */
#define LABEL(name)							\
({									\
	const char *__label;						\
									\
	asm("lea asm_" #name "(%%rip), %0" : "=r"(__label));		\
	__label;							\
})

/* To a file of /proc, /sys...  Returns 0, or the error. */
static inline int __write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC), r = 0;

	if (fd < 0)
		return errno;
	if (write(fd, text, strlen(text)) != strlen(text))
		r = errno;
	close(fd);
	return r;
}

static inline void write_text(const char *path, const char *text)
{
	int r = __write_text(path, text);

	TEST_ASSERT(!r, "Can't write '%s' to %s: %s", text, path, strerror(r));
}

/* The knobs of transparent huge pages. */
#define THP_DIR			"/sys/kernel/mm/transparent_hugepage/"

struct thp_knob {
	const char *name;
	char saved[32];
};

/* That of huge pages by their size says to do what the other one says. */
static struct thp_knob thp_knobs[] = {
	{ "enabled" },
	{ "shmem_enabled" },
	{ "hugepages-2048kB/shmem_enabled" },
};

static pid_t thp_saved_by;

/* Returns the setting, which is the word in brackets. */
static inline void thp_knob_read(struct thp_knob *knob)
{
	char path[128], line[128] = "";
	char *start, *end;
	FILE *f;

	snprintf(path, sizeof(path), THP_DIR "%s", knob->name);
	f = fopen(path, "r");
	if (!f)
		return;
	if (fgets(line, sizeof(line), f)) {
		start = strchr(line, '[');
		end = strchr(line, ']');
		if (start && end)
			snprintf(knob->saved, sizeof(knob->saved), "%.*s",
				 (int)(end - start - 1), start + 1);
	}
	fclose(f);
}

static inline void thp_knob_write(const char *name, const char *value)
{
	char path[128];

	snprintf(path, sizeof(path), THP_DIR "%s", name);
	write_text(path, value);
}

/* Whether huge pages can be had at all, of anonymous memory and of shmem. */
static inline bool thp_available(void)
{
	return thp_knobs[0].saved[0] && thp_knobs[1].saved[0];
}

/* Huge pages in the shared halves as they ask for them, in shmem as told. */
static inline void thp_set(const char *shmem_enabled)
{
	thp_knob_write("enabled", "madvise");
	thp_knob_write("shmem_enabled", shmem_enabled);
	if (thp_knobs[2].saved[0])
		thp_knob_write(thp_knobs[2].name, "inherit");
}

/* Tests are children of the process that has saved the settings. */
static inline void thp_restore(void)
{
	int i;

	if (getpid() != thp_saved_by)
		return;
	for (i = 0; i < ARRAY_SIZE(thp_knobs); i++)
		if (thp_knobs[i].saved[0])
			thp_knob_write(thp_knobs[i].name, thp_knobs[i].saved);
}

/* As the backing wants it; tests that change it come back to this. */
static inline void thp_set_backing(void)
{
	if (thp_available())
		thp_set(private_backing()->shmem_enabled ?: "never");
}

/*
 * What each of the tests begins with: there are private slots, and the huge
 * pages are set up for the rest of the run.
 */
static inline void require_private_mem(void)
{
	const struct private_backing *backing = private_backing();
	int i;

	TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_PRIVATE_MEM) & backing->store);

	for (i = 0; i < ARRAY_SIZE(thp_knobs); i++)
		thp_knob_read(&thp_knobs[i]);
	if (backing_is_huge() && !backing_is_hugetlb())
		TEST_REQUIRE(thp_available());
	thp_saved_by = getpid();
	atexit(thp_restore);
	thp_set_backing();
}

static inline struct kvm_vm *vm_create_private(uint32_t nr_vcpus, void *guest_code,
					       struct kvm_vcpu *vcpus[])
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};

	return __vm_create_with_vcpus(shape, nr_vcpus, 0, guest_code, vcpus);
}

static inline int private_memfd_sized(size_t size, unsigned int flags)
{
	int fd = memfd_create("private", MFD_CLOEXEC | flags);

	TEST_ASSERT(fd >= 0, __KVM_SYSCALL_ERROR("memfd_create()", fd));
	TEST_ASSERT(!ftruncate(fd, size), "ftruncate(%zu) failed: %s", size, strerror(errno));
	return fd;
}

/* Of the store that is tested; with other flags than MFD_INACCESSIBLE, too. */
static inline int backing_memfd(size_t size, unsigned int flags)
{
	return private_memfd_sized(size, private_backing()->memfd_flags | flags);
}

static inline int private_memfd(size_t size)
{
	return backing_memfd(size, MFD_INACCESSIBLE);
}

static inline void memfd_to_private(int fd, off_t offset, off_t len)
{
	int r = fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, len);

	TEST_ASSERT(!r, "fallocate(%#lx, %#lx) failed: %s", offset, len, strerror(errno));
}

static inline void memfd_to_shared(int fd, off_t offset, off_t len)
{
	int r = fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, len);

	TEST_ASSERT(!r, "punching (%#lx, %#lx) failed: %s", offset, len, strerror(errno));
}

static inline bool memfd_is_private(int fd, off_t offset)
{
	return lseek(fd, offset, SEEK_DATA) == offset;
}

/* In units. */
static inline uint64_t memfd_nr_private(int fd)
{
	struct stat st;

	TEST_ASSERT(!fstat(fd, &st), "fstat() failed: %s", strerror(errno));
	return st.st_blocks * 512 / UNIT;
}

/* Bind @size bytes of @fd to a new slot.  Returns what the ioctl does. */
static inline int __vm_add_private(struct kvm_vm *vm, uint32_t slot, uint64_t gpa,
				   uint64_t size, void *hva, int fd, uint64_t offset)
{
	return __vm_set_user_memory_region2(vm, slot, KVM_MEM_PRIVATE, gpa, size, hva, fd, offset);
}

static inline void vm_add_private(struct kvm_vm *vm, uint32_t slot, uint64_t gpa,
				  uint64_t size, void *hva, int fd, uint64_t offset)
{
	int r = __vm_add_private(vm, slot, gpa, size, hva, fd, offset);

	TEST_ASSERT(!r, "Binding %#lx bytes of the memfd at %#lx to gpa %#lx failed: %s",
		    size, offset, gpa, strerror(errno));
}

static inline struct kvm_userspace_memory_region2
private_region(uint32_t slot, uint64_t gpa, uint64_t size, void *hva, int fd)
{
	return (struct kvm_userspace_memory_region2) {
		.slot = slot,
		.flags = KVM_MEM_PRIVATE,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)hva,
		.private_fd = fd,
	};
}

/* This and no other call: the library asks /dev/kvm for capabilities first. */
static inline int __vm_fd_add_private(int vm_fd, uint32_t slot, uint64_t gpa, uint64_t size,
				      void *hva, int fd)
{
	const struct kvm_userspace_memory_region2 region =
		private_region(slot, gpa, size, hva, fd);

	return ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &region);
}

static inline void vm_delete_private(struct kvm_vm *vm, uint32_t slot)
{
	vm_set_user_memory_region(vm, slot, 0, 0, 0, NULL);
}

/*
 * Identity-map guest memory, in mappings of the unit's size: nobody wants to
 * wait for a quarter of a million of the smallest ones, or to give them memory.
 * The ends are rounded to units outwards.
 */
static inline void virt_map_private(struct kvm_vm *vm, uint64_t gpa, uint64_t size)
{
	uint64_t start = align_down(gpa, UNIT);

	virt_map_level(vm, start, start, align_up(gpa + size, UNIT) - start,
		       private_backing()->level);
}

/*
 * Address space that lies @pages after a 2 MiB boundary, with huge pages where
 * it can have them.  Never freed: the process ends with the test.
 */
static inline void *map_half(size_t size, unsigned int pages, int prot)
{
	void *p = mmap(NULL, size + 2 * SZ_2M, prot,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	TEST_ASSERT(p != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	p = align_ptr_up(p, SZ_2M) + pages * PAGE_SIZE;
	if (thp_configured())
		madvise(p, size, MADV_HUGEPAGE);
	return p;
}

static inline void *map_shared_half(size_t size)
{
	return map_half(size, 0, PROT_READ | PROT_WRITE);
}

/* A slot with this as its shared half is a private-only one. */
static inline void *map_no_shared_half(size_t size)
{
	return map_half(size, 0, PROT_NONE);
}

/* Who misses a page there waits for this descriptor.  Negative: there is no userfaultfd. */
static inline int uffd_open(void *start, size_t len)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { (uintptr_t)start, len },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (uffd < 0)
		return uffd;
	TEST_ASSERT(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API failed: %s", strerror(errno));
	TEST_ASSERT(!ioctl(uffd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER failed: %s",
		    strerror(errno));
	return uffd;
}

/* Which page somebody misses; returns when that is the case. */
static inline void *uffd_wait(int uffd)
{
	struct uffd_msg msg;

	TEST_ASSERT(read(uffd, &msg, sizeof(msg)) == sizeof(msg), "No message: %s",
		    strerror(errno));
	TEST_ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	return (void *)(msg.arg.pagefault.address & PAGE_MASK);
}

/* It is there then, with this in all of its words. */
static inline void uffd_fill(int uffd, void *page, uint64_t value)
{
	static uint64_t data[PAGE_SIZE / sizeof(uint64_t)] __aligned(PAGE_SIZE);
	struct uffdio_copy copy = {
		.dst = (uintptr_t)page,
		.src = (uintptr_t)data,
		.len = PAGE_SIZE,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(data); i++)
		data[i] = value;
	TEST_ASSERT(!ioctl(uffd, UFFDIO_COPY, &copy), "UFFDIO_COPY failed: %s", strerror(errno));
}

/* Of a VM or a vCPU; unlike vm_get_stat() this fails if there is no such stat. */
static inline uint64_t get_stat(int stats_fd, const char *name)
{
	struct kvm_stats_header header;
	struct kvm_stats_desc *descs, *desc;
	uint64_t data = 0;
	bool found = false;
	int i;

	read_stats_header(stats_fd, &header);
	descs = read_stats_descriptors(stats_fd, &header);
	for (i = 0; i < header.num_desc && !found; i++) {
		desc = get_stats_descriptor(descs, i, &header);
		if (strcmp(desc->name, name))
			continue;
		read_stat_data(stats_fd, &header, desc, &data, 1);
		found = true;
	}
	free(descs);
	TEST_ASSERT(found, "There is no stat '%s'", name);
	return data;
}

static inline uint64_t get_vm_stat(struct kvm_vm *vm, const char *name)
{
	int fd = vm_get_stats_fd(vm);
	uint64_t data = get_stat(fd, name);

	close(fd);
	return data;
}

/* How much of the private half is mapped, in units. */
static inline uint64_t nr_private_mapped(struct kvm_vm *vm)
{
	return get_vm_stat(vm, "private_pages") / (UNIT / PAGE_SIZE);
}

static inline uint64_t get_vcpu_stat(struct kvm_vcpu *vcpu, const char *name)
{
	int fd = vcpu_get_stats_fd(vcpu);
	uint64_t data = get_stat(fd, name);

	close(fd);
	return data;
}

/*
 * The one way in which a page that isn't there is reported: @flags is 0 or
 * KVM_MEMORY_EXIT_FLAG_PRIVATE.  @r and errno are those of KVM_RUN.
 */
static inline void assert_memory_fault(struct kvm_vcpu *vcpu, int r, int error,
				       uint64_t flags, uint64_t gpa)
{
	struct kvm_run *run = vcpu->run;
	int saved = errno;

	TEST_ASSERT(r == -1 && saved == error,
		    "Wanted KVM_RUN to fail with %s, got %d (%s), exit %s",
		    strerror(error), r, r ? strerror(saved) : "no error",
		    exit_reason_str(run->exit_reason));
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT(run->memory_fault.flags == flags &&
		    run->memory_fault.gpa == gpa && run->memory_fault.size == PAGE_SIZE,
		    "Wanted a fault with flags %#lx at %#lx, got %#llx, gpa %#llx, size %#llx",
		    flags, gpa, run->memory_fault.flags, run->memory_fault.gpa,
		    run->memory_fault.size);
}

/* What must be as it was before. */
struct counters {
	long shmem_kb;
	long hugetlb_used, hugetlb_reserved;
	long files;
	long vms;
	long kvm_users;
	long vendor_users;
};

static inline long read_number(const char *path)
{
	long value = -1;
	FILE *f = fopen(path, "r");

	if (f) {
		if (fscanf(f, "%ld", &value) != 1)
			value = -1;
		fclose(f);
	}
	return value;
}

/* Of the pool of huge pages of a unit. */
static inline const char *hugetlb_path(const char *name)
{
	static char path[128];

	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%lukB/%s", UNIT / SZ_1K,
		 name);
	return path;
}

static inline long read_hugetlb(const char *name)
{
	return read_number(hugetlb_path(name));
}

/* Of hugetlbfs, the pages that somebody has. */
static inline long read_hugetlb_used(void)
{
	long nr = read_hugetlb("nr_hugepages"), nr_free = read_hugetlb("free_hugepages");

	TEST_ASSERT(nr > 0 && nr_free >= 0, "No huge pages of %lu kB", UNIT / SZ_1K);
	TEST_ASSERT(nr_free <= nr, "%ld huge pages are free, of %ld", nr_free, nr);
	return nr - nr_free;
}

static inline void read_counters(struct counters *c)
{
	struct dirent *entry;
	char line[128];
	FILE *f;
	DIR *d;

	memset(c, 0, sizeof(*c));

	/* Without this each CPU may have some pages to itself. */
	read_number("/proc/sys/vm/stat_refresh");
	f = fopen("/proc/meminfo", "r");
	TEST_ASSERT(f, "Can't read /proc/meminfo: %s", strerror(errno));
	while (fgets(line, sizeof(line), f))
		sscanf(line, "Shmem: %ld", &c->shmem_kb);
	fclose(f);
	if (backing_is_hugetlb()) {
		c->hugetlb_used = read_hugetlb_used();
		c->hugetlb_reserved = read_hugetlb("resv_hugepages");
	}
	c->files = read_number("/proc/sys/fs/file-nr");

	/* A directory for each VM, if debugfs is there. */
	d = opendir("/sys/kernel/debug/kvm");
	while (d && (entry = readdir(d)))
		c->vms += entry->d_type == DT_DIR;
	if (d)
		closedir(d);

	/* Only if KVM is a module. */
	c->kvm_users = read_number("/sys/module/kvm/refcnt");
	c->vendor_users = read_number(host_cpu_is_amd ? "/sys/module/kvm_amd/refcnt" :
							"/sys/module/kvm_intel/refcnt");
}

static inline void assert_counters(const struct counters *before, const char *what)
{
	/* Up to so many may be missing, or too many, for each CPU, both then and now. */
	const long max_files = before->files + 2 * 31 * get_nprocs();
	struct counters now;
	int tries;

	/* Some of it is left to workqueues.  And some may have been left to others before. */
	for (tries = 0; tries < 3000; tries++) {
		read_counters(&now);
		if (now.shmem_kb <= before->shmem_kb &&
		    now.hugetlb_used <= before->hugetlb_used &&
		    now.hugetlb_reserved == before->hugetlb_reserved &&
		    now.files <= max_files && now.vms == before->vms &&
		    now.kvm_users == before->kvm_users && now.vendor_users == before->vendor_users)
			return;
		usleep(10000);
	}
	TEST_ASSERT(now.hugetlb_used <= before->hugetlb_used, "%s: %ld huge pages used, were %ld",
		    what, now.hugetlb_used, before->hugetlb_used);
	TEST_ASSERT(now.hugetlb_reserved == before->hugetlb_reserved,
		    "%s: %ld huge pages reserved, were %ld", what, now.hugetlb_reserved,
		    before->hugetlb_reserved);
	TEST_ASSERT(now.files <= max_files, "%s: %ld open files, were %ld", what, now.files,
		    before->files);
	TEST_FAIL("%s: Shmem %ld kB, %ld VMs, %ld and %ld module users, were %ld, %ld, %ld, %ld",
		  what, now.shmem_kb, now.vms, now.kvm_users, now.vendor_users,
		  before->shmem_kb, before->vms, before->kvm_users, before->vendor_users);
}

/* The test's control group: what is charged to it, and what it may have. */
#define CGROUP		"/sys/fs/cgroup/private_memfd_test"
#define MEMORY_STAT	CGROUP "/memory.stat"
/* hugetlbfs has a controller of its own. */
#define HUGETLB_2M	CGROUP "/hugetlb.2MB.current"
#define HUGETLB_1G	CGROUP "/hugetlb.1GB.current"

static inline const char *cgroup_path(void)
{
	if (!backing_is_hugetlb())
		return MEMORY_STAT;
	return backing_is_1g() ? HUGETLB_1G : HUGETLB_2M;
}

/* A line of a file that has names and numbers. */
static inline long read_key(const char *path, const char *key)
{
	char line[128], name[64];
	long value, found = -1;
	FILE *f = fopen(path, "r");

	TEST_ASSERT(f, "Can't read %s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%63s %ld", name, &value) == 2 && !strcmp(name, key))
			found = value;
	fclose(f);
	return found;
}

/* For the files, in bytes. */
static inline long cgroup_charged(void)
{
	return backing_is_hugetlb() ? read_number(cgroup_path()) : read_key(MEMORY_STAT, "shmem");
}

static inline bool cgroup_wait(long value)
{
	int tries;

	/* The kernel sums it up every two seconds, if nothing forces it to. */
	for (tries = 0; tries < 500 && cgroup_charged() != value; tries++)
		usleep(10000);
	return cgroup_charged() == value;
}

/* Bytes, or "max". */
static inline void cgroup_limit(const char *max)
{
	if (!backing_is_hugetlb())
		write_text(CGROUP "/memory.max", max);
	else
		write_text(backing_is_1g() ? CGROUP "/hugetlb.1GB.max" : CGROUP "/hugetlb.2MB.max",
			   max);
}

/* How often somebody was killed for lack of memory in the group. */
static inline long cgroup_oom_kills(void)
{
	return read_key(CGROUP "/memory.events", "oom_kill");
}

static inline bool cgroup_create(void)
{
	rmdir(CGROUP);
	if (!mkdir(CGROUP, 0755) && !access(cgroup_path(), R_OK))
		return true;
	rmdir(CGROUP);
	return false;
}

/* Processes that write a 0 there mean themselves. */
static inline void cgroup_join(void)
{
	write_text(CGROUP "/cgroup.procs", "0");
}

/* A child that is in the group. */
static inline pid_t fork_in_cgroup(void)
{
	pid_t pid = fork();

	TEST_ASSERT(pid >= 0, "fork() failed: %s", strerror(errno));
	if (!pid)
		cgroup_join();
	return pid;
}

static inline void cgroup_leave(void)
{
	write_text("/sys/fs/cgroup/cgroup.procs", "0");
}

static inline void cgroup_remove(void)
{
	TEST_ASSERT(!rmdir(CGROUP), "The group is still in use: %s", strerror(errno));
}

/* Which page frames faults find is traced. */
#define TRACING		"/sys/kernel/tracing/"
#define TRACE_EVENT	TRACING "events/kvm/kvm_memfile_get_pfn/enable"

static inline void pfns_trace(void)
{
	write_text(TRACING "trace", "\n");
	write_text(TRACE_EVENT, "1");
}

/* Those of the pages at every @step bytes; 0 if nobody asked for one since. */
static inline void pfns_read(uint64_t gpa, uint64_t nr, uint64_t step, uint64_t *pfns)
{
	char line[512], *p;
	FILE *f;

	write_text(TRACE_EVENT, "0");
	f = fopen(TRACING "trace", "r");
	TEST_ASSERT(f, "Can't read the trace: %s", strerror(errno));
	memset(pfns, 0, nr * sizeof(*pfns));
	while (fgets(line, sizeof(line), f)) {
		uint64_t gfn, pfn, offset;
		int error;

		p = strstr(line, "kvm_memfile_get_pfn: ");
		if (!p || sscanf(p, "%*s gfn %lx pfn %lx order %*u error %d", &gfn, &pfn,
				 &error) != 3 || error)
			continue;
		offset = gfn * PAGE_SIZE - gpa;
		if (offset % step == 0 && offset / step < nr)
			pfns[offset / step] = pfn;
	}
	fclose(f);
}

/* By one of two files: whether the page may fail soon, or has failed. Returns 0, or the error. */
static inline int page_offline(const char *path, uint64_t pfn)
{
	char text[32];

	snprintf(text, sizeof(text), "%#llx", pfn * PAGE_SIZE);
	return __write_text(path, text);
}

/*
 * A guest that walks over its pages as it is told to, with the instructions in
 * its own memory.
 */
#define AGENT_MAX_PAGES		2560
#define AGENT_NOTHING		(~0ull)

struct agent {
	/* In. */
	uint64_t unit;
	uint64_t gva;
	uint64_t nr_pages;
	struct {
		uint64_t expect;	/* or AGENT_NOTHING */
		uint64_t write;		/* ditto */
	} page[AGENT_MAX_PAGES];

	/* Out: the number of wrong pages, where the first is and what it had. */
	uint64_t nr_bad;
	uint64_t bad_gva;
	uint64_t bad_value;
	uint64_t bad_expect;
};

static inline void agent_walk(struct agent *agent)
{
	uint64_t i, j;

	agent->nr_bad = 0;
	for (i = 0; i < agent->nr_pages; i++) {
		void *page = (void *)(agent->gva + i * agent->unit);
		uint64_t expect = agent->page[i].expect;
		uint64_t write = agent->page[i].write;

		for (j = 0; j < NR_PROBES && expect != AGENT_NOTHING; j++) {
			uint64_t *word = probe(page, agent->unit, j);
			uint64_t value = READ_ONCE(*word);

			if (value == expect || agent->nr_bad++)
				continue;
			agent->bad_gva = (uint64_t)word;
			agent->bad_value = value;
			agent->bad_expect = expect;
		}
		for (j = 0; j < NR_PROBES && write != AGENT_NOTHING; j++)
			WRITE_ONCE(*probe(page, agent->unit, j), write);
	}
}

static inline void agent_code(struct agent *agent)
{
	for (;;) {
		GUEST_UCALL_NONE();
		agent_walk(agent);
	}
}

/* Give @vcpu, which runs agent_code(), its orders; returned as the host sees them. */
static inline struct agent *agent_create(struct kvm_vcpu *vcpu)
{
	vm_vaddr_t gva = vm_vaddr_alloc(vcpu->vm, sizeof(struct agent), KVM_UTIL_MIN_VADDR);
	struct agent *agent = addr_gva2hva(vcpu->vm, gva);

	agent->unit = UNIT;
	vcpu_args_set(vcpu, 1, gva);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	return agent;
}

static inline void agent_report(struct agent *agent)
{
	TEST_ASSERT(!agent->nr_bad, "%lu words wrong, the first at %#lx: %#lx for %#lx",
		    agent->nr_bad, agent->bad_gva, agent->bad_value, agent->bad_expect);
}

static inline void agent_run(struct kvm_vcpu *vcpu, struct agent *agent)
{
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	assert_on_unhandled_exception(vcpu);
	agent_report(agent);
}

/* All pages from @gva alike. */
static inline void agent_order(struct agent *agent, uint64_t gva, uint64_t nr_pages,
			       uint64_t expect, uint64_t write)
{
	uint64_t i;

	TEST_ASSERT(nr_pages <= AGENT_MAX_PAGES, "Too much for one walk: %lu pages", nr_pages);
	agent->gva = gva;
	agent->nr_pages = nr_pages;
	for (i = 0; i < nr_pages; i++) {
		agent->page[i].expect = expect;
		agent->page[i].write = write;
	}
}

#endif /* SELFTEST_KVM_PRIVATE_MEMFD_H */
