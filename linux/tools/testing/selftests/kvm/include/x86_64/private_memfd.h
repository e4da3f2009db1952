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

#include <linux/falloc.h>
#include <linux/memfd.h>
#include <linux/sizes.h>
#include <sys/stat.h>

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

/* So many words of a page stand for all of it, the first and the last included. */
#define NR_PROBES		3

/* Tests take longer, or shorter, by this environment variable: in percent. */
static inline unsigned long scaled(unsigned long rounds)
{
	const char *percent = getenv("PRIVATE_MEMFD_PERCENT");

	return percent ? rounds * atoi_positive("PRIVATE_MEMFD_PERCENT", percent) / 100 : rounds;
}

static inline uint64_t *probe(void *page, int i)
{
	return page + i * (PAGE_SIZE - sizeof(uint64_t)) / (NR_PROBES - 1) / 8 * 8;
}

static inline uint64_t probe_read(void *page, int i)
{
	return READ_ONCE(*probe(page, i));
}

static inline void probe_write(void *page, int i, uint64_t value)
{
	WRITE_ONCE(*probe(page, i), value);
}

static inline void require_private_mem(void)
{
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_PRIVATE_MEM) & PRIVATE_MEM_SHMEM);
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

static inline int private_memfd(size_t size)
{
	return private_memfd_sized(size, MFD_INACCESSIBLE);
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

static inline uint64_t memfd_nr_private(int fd)
{
	struct stat st;

	TEST_ASSERT(!fstat(fd, &st), "fstat() failed: %s", strerror(errno));
	return st.st_blocks * 512 / PAGE_SIZE;
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

static inline void vm_delete_private(struct kvm_vm *vm, uint32_t slot)
{
	vm_set_user_memory_region(vm, slot, 0, 0, 0, NULL);
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

/*
 * A guest that walks over its pages as it is told to, with the instructions in
 * its own memory.
 */
#define AGENT_MAX_PAGES		2560
#define AGENT_NOTHING		(~0ull)

struct agent {
	/* In. */
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
		void *page = (void *)(agent->gva + i * PAGE_SIZE);
		uint64_t expect = agent->page[i].expect;
		uint64_t write = agent->page[i].write;

		for (j = 0; j < NR_PROBES && expect != AGENT_NOTHING; j++) {
			uint64_t value = probe_read(page, j);

			if (value == expect || agent->nr_bad++)
				continue;
			agent->bad_gva = (uint64_t)probe(page, j);
			agent->bad_value = value;
			agent->bad_expect = expect;
		}
		for (j = 0; j < NR_PROBES && write != AGENT_NOTHING; j++)
			probe_write(page, j, write);
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

	vcpu_args_set(vcpu, 1, gva);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	return addr_gva2hva(vcpu->vm, gva);
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
