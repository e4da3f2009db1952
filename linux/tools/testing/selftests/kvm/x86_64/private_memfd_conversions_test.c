// SPDX-License-Identifier: GPL-2.0
/*
 * Explicit conversions, asked for by the guest with a hypercall: what
 * private_mem_conversions_test checks of a guest_memfd, on KVM_MEM_PRIVATE
 * slots.
 *
 * Where a guest_memfd needs attributes to convert and may be punched without
 * converting, here there are two operations only: fallocate() makes memory
 * private, and punching a hole makes it shared.  So there is nothing that could
 * be left out, and a page that is private again has always lost its content.
 *
 * All slots are on one memfd, in which they follow each other as in guest
 * memory: a conversion may concern several of them, and several vCPUs convert
 * parts of one slot.
 */
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include <linux/compiler.h>
#include <linux/kernel.h>
#include <linux/kvm_para.h>
#include <linux/sizes.h>

#include "private_memfd.h"

#define BASE_DATA_SLOT		10
#define BASE_DATA_GPA		((uint64_t)(1ull << 32))
/* Of huge pages and pages that are in none, or of a few units. */
#define PER_CPU_DATA_SIZE	(chunk_size() + unit)

/* For the guest, which can't ask for it. */
static uint64_t unit;

static uint64_t chunk_size(void)
{
	return unit < SZ_2M ? SZ_2M : 2 * unit;
}

/* All bytes of the memory are the same, and compared eight at a time. */
static uint64_t word_of(uint8_t pattern)
{
	return pattern * 0x0101010101010101ull;
}

/* A macro, so that the line is the caller's. */
#define memcmp_g(gpa, pattern, size)							\
do {											\
	uint64_t __word = word_of(pattern), *__mem = (uint64_t *)(gpa);			\
	uint64_t *__end = (void *)__mem + (size);					\
											\
	for (; __mem < __end; __mem++)							\
		__GUEST_ASSERT(READ_ONCE(*__mem) == __word,				\
			       "Guest expected 0x%lx at gpa 0x%lx, got 0x%lx",		\
			       __word, (uint64_t)__mem, *__mem);			\
} while (0)

static void memcmp_h(const void *hva, uint64_t gpa, uint8_t pattern, size_t size)
{
	const uint64_t *mem = hva;
	size_t i;

	for (i = 0; i < size / sizeof(*mem); i++)
		TEST_ASSERT(mem[i] == word_of(pattern),
			    "Host expected 0x%x at gpa 0x%lx, got 0x%lx",
			    pattern, gpa + i * sizeof(*mem), mem[i]);
}

enum ucall_syncs {
	SYNC_SHARED,
	SYNC_PRIVATE,
};

/* The host should see @current_pattern, and writes @new_pattern. */
static void guest_sync_shared(uint64_t gpa, uint64_t size,
			      uint8_t current_pattern, uint8_t new_pattern)
{
	GUEST_SYNC5(SYNC_SHARED, gpa, size, current_pattern, new_pattern);
}

/* The host should see @pattern, which was there before the memory was private. */
static void guest_sync_private(uint64_t gpa, uint64_t size, uint8_t pattern)
{
	GUEST_SYNC4(SYNC_PRIVATE, gpa, size, pattern);
}

static void guest_map_shared(uint64_t gpa, uint64_t size)
{
	kvm_hypercall_map_gpa_range(gpa, size, KVM_MAP_GPA_RANGE_DECRYPTED);
}

static void guest_map_private(uint64_t gpa, uint64_t size)
{
	kvm_hypercall_map_gpa_range(gpa, size, KVM_MAP_GPA_RANGE_ENCRYPTED);
}

/* In units; a chunk is a huge page or two. */
#define CHUNK			0x8000

static const struct {
	uint64_t offset;
	uint64_t size;
} test_ranges[] = {
	{ 0, 1 },
	{ 0, CHUNK },
	{ 1, 1 },
	{ 1, CHUNK },
	{ CHUNK - 1, 2 },
	{ CHUNK, 1 },
};

static uint64_t range_bytes(uint64_t nr)
{
	if (nr < CHUNK - 1)
		return nr * unit;
	return chunk_size() - (CHUNK - nr) * unit;
}

/* What is around [@gpa, @gpa + @size) has kept its @pattern. */
static void guest_check_rest(uint64_t base_gpa, uint64_t gpa, uint64_t size, uint8_t pattern)
{
	memcmp_g(base_gpa, pattern, gpa - base_gpa);
	memcmp_g(gpa + size, pattern, base_gpa + PER_CPU_DATA_SIZE - (gpa + size));
}

/*
 * Of each range:
 * 1) Memory that is made private is zero, takes what the guest writes, and the
 *    host goes on seeing what was there before.
 * 2) Pages of it that are made shared are what the host sees, those between
 *    them are not.
 * 3) So is the whole range when it is shared again.
 * What is around the range doesn't notice any of that.
 */
static void guest_test_explicit_conversion(uint64_t base_gpa)
{
	const uint8_t def_p = 0xaa;
	const uint8_t init_p = 0xcc;
	const uint8_t p1 = 0x11, p2 = 0x22, p3 = 0x33, p4 = 0x44, p5 = 0x55;
	uint64_t j;
	int i;

	/* Memory should be shared by default. */
	memset((void *)base_gpa, def_p, PER_CPU_DATA_SIZE);
	memcmp_g(base_gpa, def_p, PER_CPU_DATA_SIZE);
	guest_sync_shared(base_gpa, PER_CPU_DATA_SIZE, def_p, init_p);
	memcmp_g(base_gpa, init_p, PER_CPU_DATA_SIZE);

	for (i = 0; i < ARRAY_SIZE(test_ranges); i++) {
		uint64_t gpa = base_gpa + range_bytes(test_ranges[i].offset);
		uint64_t size = range_bytes(test_ranges[i].size);

		/* To tell the range from the rest. */
		memset((void *)gpa, p1, size);

		guest_map_private(gpa, size);
		memcmp_g(gpa, 0, size);
		memset((void *)gpa, p2, size);
		guest_sync_private(gpa, size, p1);
		memcmp_g(gpa, p2, size);
		guest_check_rest(base_gpa, gpa, size, init_p);

		/* What is private already keeps its content. */
		guest_map_private(gpa, size);
		memcmp_g(gpa, p2, size);

		/* Odd pages, which leaves holes in the private range. */
		for (j = unit; j < size; j += 2 * unit)
			guest_map_shared(gpa + j, unit);
		for (j = 0; j < size; j += unit) {
			if ((j / unit) & 1) {
				memcmp_g(gpa + j, p1, unit);
				guest_sync_shared(gpa + j, unit, p1, p3);
				memcmp_g(gpa + j, p3, unit);
			} else {
				memcmp_g(gpa + j, p2, unit);
				guest_sync_private(gpa + j, unit, p1);
			}
		}
		guest_check_rest(base_gpa, gpa, size, init_p);

		/* All of it, parts of which are shared already. */
		guest_map_shared(gpa, size);
		for (j = 0; j < size; j += unit)
			memcmp_g(gpa + j, (j / unit) & 1 ? p3 : p1, unit);
		memset((void *)gpa, p4, size);
		guest_sync_shared(gpa, size, p4, p5);
		memcmp_g(gpa, p5, size);
		guest_check_rest(base_gpa, gpa, size, init_p);

		/* Back to where it was. */
		memset((void *)gpa, init_p, size);
		guest_sync_shared(base_gpa, PER_CPU_DATA_SIZE, init_p, init_p);
	}
}

/*
 * A hole frees memory: SPTEs are zapped, and what is allocated in its place is
 * zero.  With all of the memory private and in use, or (@precise) the range.
 */
static void guest_test_punch_hole(uint64_t base_gpa, bool precise)
{
	const uint8_t shared_p = 0x66, init_p = 0xcc;
	int i;

	memset((void *)base_gpa, shared_p, PER_CPU_DATA_SIZE);

	for (i = 0; i < ARRAY_SIZE(test_ranges); i++) {
		uint64_t gpa = base_gpa + range_bytes(test_ranges[i].offset);
		uint64_t size = range_bytes(test_ranges[i].size);
		uint64_t used_gpa = precise ? gpa : base_gpa;
		uint64_t used_size = precise ? size : PER_CPU_DATA_SIZE;
		uint8_t rest_p = precise ? shared_p : init_p;

		guest_map_private(used_gpa, used_size);
		memcmp_g(used_gpa, 0, used_size);
		memset((void *)used_gpa, init_p, used_size);
		memcmp_g(used_gpa, init_p, used_size);

		guest_map_shared(gpa, size);
		memcmp_g(gpa, shared_p, size);
		guest_check_rest(base_gpa, gpa, size, rest_p);

		guest_map_private(gpa, size);
		memcmp_g(gpa, 0, size);
		guest_check_rest(base_gpa, gpa, size, rest_p);

		/* Free all of it, whatever is there. */
		guest_map_shared(base_gpa, PER_CPU_DATA_SIZE);
		memcmp_g(base_gpa, shared_p, PER_CPU_DATA_SIZE);
	}
}

static void guest_code(uint64_t base_gpa)
{
	guest_test_explicit_conversion(base_gpa);
	guest_test_punch_hole(base_gpa, false);
	guest_test_punch_hole(base_gpa, true);
	GUEST_DONE();
}

struct test_vm {
	struct kvm_vm *vm;
	void *hva;		/* of BASE_DATA_GPA */
	int fd;			/* offset 0 is BASE_DATA_GPA */
	unsigned long nr_conversions;
};

struct test_vcpu {
	struct test_vm *test;
	struct kvm_vcpu *vcpu;
	pthread_t thread;
};

static void handle_exit_hypercall(struct test_vm *test, struct kvm_run *run)
{
	uint64_t offset = run->hypercall.args[0] - BASE_DATA_GPA;
	uint64_t size = run->hypercall.args[1] * PAGE_SIZE;

	TEST_ASSERT(run->hypercall.nr == KVM_HC_MAP_GPA_RANGE,
		    "Wanted MAP_GPA_RANGE (%u), got '%llu'",
		    KVM_HC_MAP_GPA_RANGE, run->hypercall.nr);

	if (run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED)
		memfd_to_private(test->fd, offset, size);
	else
		memfd_to_shared(test->fd, offset, size);

	__atomic_fetch_add(&test->nr_conversions, 1, __ATOMIC_RELAXED);
	run->hypercall.ret = 0;
}

static void handle_sync(struct test_vm *test, struct ucall *uc)
{
	uint64_t gpa = uc->args[1], size = uc->args[2], i;
	void *hva = test->hva + gpa - BASE_DATA_GPA;

	TEST_ASSERT(uc->args[0] == SYNC_SHARED || uc->args[0] == SYNC_PRIVATE,
		    "Unknown sync command '%ld'", uc->args[0]);

	/* In all cases, the host should observe the shared data. */
	memcmp_h(hva, gpa, uc->args[3], size);

	for (i = 0; i < size; i += UNIT)
		TEST_ASSERT(memfd_is_private(test->fd, gpa - BASE_DATA_GPA + i) ==
			    (uc->args[0] == SYNC_PRIVATE),
			    "The memfd has a %s at gpa 0x%lx",
			    uc->args[0] == SYNC_PRIVATE ? "hole" : "page", gpa + i);

	/* For shared, write the new pattern to guest memory. */
	if (uc->args[0] == SYNC_SHARED)
		memset(hva, uc->args[4], size);
}

static bool run_vcpus;

static void *test_mem_conversions_vcpu(void *arg)
{
	struct test_vcpu *test_vcpu = arg;
	struct kvm_vcpu *vcpu = test_vcpu->vcpu;
	struct kvm_run *run = vcpu->run;
	struct ucall uc;

	while (!READ_ONCE(run_vcpus))
		;

	for ( ;; ) {
		vcpu_run(vcpu);

		if (run->exit_reason == KVM_EXIT_HYPERCALL) {
			handle_exit_hypercall(test_vcpu->test, run);
			continue;
		}

		/* An access out of bounds: where, and from where. */
		if (run->exit_reason == KVM_EXIT_SHUTDOWN)
			vcpu_dump(stderr, vcpu, 0);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);

		switch (get_ucall(vcpu, &uc)) {
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
		case UCALL_SYNC:
			handle_sync(test_vcpu->test, &uc);
			break;
		case UCALL_DONE:
			return NULL;
		default:
			TEST_FAIL("Unknown ucall 0x%lx.", uc.cmd);
		}
	}
}

/* Memory of the kind that -s says, for the shared halves. */
static void *map_backing_src(enum vm_mem_backing_src_type src_type, size_t size)
{
	size_t alignment = max_t(size_t, SZ_2M, get_backing_src_pagesz(src_type));
	int fd = -1;
	void *mem;

	/* Huge pages that are reserved come aligned, and one more would be too many. */
	if (!is_backing_src_hugetlb(src_type))
		size += alignment;
	if (backing_src_is_shared(src_type))
		fd = kvm_memfd_alloc(size, src_type == VM_MEM_SRC_SHARED_HUGETLB);

	mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
		   vm_mem_backing_src_alias(src_type)->flag, fd, 0);
	TEST_ASSERT(mem != MAP_FAILED, __KVM_SYSCALL_ERROR("mmap()", -1));
	mem = align_ptr_up(mem, alignment);

	if (thp_configured() && (src_type == VM_MEM_SRC_ANONYMOUS ||
				 src_type == VM_MEM_SRC_ANONYMOUS_THP))
		TEST_ASSERT(!madvise(mem, size - alignment,
				     src_type == VM_MEM_SRC_ANONYMOUS ? MADV_NOHUGEPAGE :
									MADV_HUGEPAGE),
			    "madvise() failed: %s", strerror(errno));
	return mem;
}

static void test_mem_conversions(enum vm_mem_backing_src_type src_type, uint32_t nr_vcpus,
				 uint32_t nr_memslots)
{
	/*
	 * Allocate enough memory so that each vCPU's chunk of memory can be
	 * naturally aligned with respect to the size of the backing store.
	 */
	const size_t alignment = max_t(size_t, SZ_2M, get_backing_src_pagesz(src_type));
	const size_t per_cpu_size = align_up(PER_CPU_DATA_SIZE, alignment);
	const size_t memfd_size = per_cpu_size * nr_vcpus;
	const size_t slot_size = memfd_size / nr_memslots;
	struct test_vcpu vcpus[KVM_MAX_VCPUS];
	struct kvm_vcpu *kvm_vcpus[KVM_MAX_VCPUS];
	struct test_vm test = {};
	int i;

	TEST_ASSERT(slot_size * nr_memslots == memfd_size && !(slot_size % PAGE_SIZE),
		    "The memfd size (0x%lx) needs to be cleanly divisible by the number of memslots (%u)",
		    memfd_size, nr_memslots);

	pr_info("Testing %s, %u vCPUs, %u memslots of 0x%lx bytes\n",
		vm_mem_backing_src_alias(src_type)->name, nr_vcpus, nr_memslots, slot_size);

	test.vm = vm_create_private(nr_vcpus, guest_code, kvm_vcpus);
	sync_global_to_guest(test.vm, unit);
	vm_enable_cap(test.vm, KVM_CAP_EXIT_HYPERCALL, (1 << KVM_HC_MAP_GPA_RANGE));

	test.fd = private_memfd(memfd_size);
	test.hva = map_backing_src(src_type, memfd_size);

	for (i = 0; i < nr_memslots; i++)
		vm_add_private(test.vm, BASE_DATA_SLOT + i, BASE_DATA_GPA + slot_size * i,
			       slot_size, test.hva + slot_size * i, test.fd, slot_size * i);

	WRITE_ONCE(run_vcpus, false);
	for (i = 0; i < nr_vcpus; i++) {
		uint64_t gpa = BASE_DATA_GPA + i * per_cpu_size;

		vcpus[i].test = &test;
		vcpus[i].vcpu = kvm_vcpus[i];
		vcpu_args_set(kvm_vcpus[i], 1, gpa);

		/*
		 * Map only what is needed so that an out-of-bounds access
		 * results #PF => SHUTDOWN instead of data corruption.
		 */
		virt_map_private(test.vm, gpa, PER_CPU_DATA_SIZE);

		pthread_create(&vcpus[i].thread, NULL, test_mem_conversions_vcpu, &vcpus[i]);
	}

	WRITE_ONCE(run_vcpus, true);

	for (i = 0; i < nr_vcpus; i++)
		pthread_join(vcpus[i].thread, NULL);

	/* Each vCPU has left its memory shared, and nobody has touched the rest. */
	TEST_ASSERT(test.nr_conversions >= nr_vcpus * 2 * ARRAY_SIZE(test_ranges),
		    "Only %lu conversions", test.nr_conversions);
	TEST_ASSERT_EQ(memfd_nr_private(test.fd), 0);
	TEST_ASSERT_EQ(get_vm_stat(test.vm, "private_pages"), 0);

	/*
	 * Allocate and free memory after the VM is gone, half of it from
	 * before: the file keeps no VM alive, and needs none.
	 */
	memfd_to_private(test.fd, 0, align_up(memfd_size / 2, UNIT));
	kvm_vm_free(test.vm);
	TEST_ASSERT_EQ(memfd_nr_private(test.fd), align_up(memfd_size / 2, UNIT) / UNIT);
	memfd_to_shared(test.fd, 0, memfd_size);
	TEST_ASSERT_EQ(memfd_nr_private(test.fd), 0);
	memfd_to_private(test.fd, 0, memfd_size);
	TEST_ASSERT_EQ(memfd_nr_private(test.fd), memfd_size / UNIT);

	close(test.fd);
}

static void usage(const char *cmd)
{
	puts("");
	printf("Usage: %s [-h] [-m nr_memslots] [-s mem_type] [-n nr_vcpus]\n", cmd);
	puts("");
	backing_src_help("-s");
	puts("");
	puts(" -n: specify the number of vcpus (default: 1)");
	puts("");
	puts(" -m: specify the number of memslots (default: 1)");
	puts("");
	puts(" Without options: 1 vcpu with 1 memslot, then 2 with 8.");
	puts("");
}

int main(int argc, char *argv[])
{
	enum vm_mem_backing_src_type src_type = DEFAULT_VM_MEM_SRC;
	uint32_t nr_memslots = 1;
	uint32_t nr_vcpus = 1;
	int opt;

	require_private_mem();
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_EXIT_HYPERCALL) & BIT(KVM_HC_MAP_GPA_RANGE));

	/* Each byte is compared, many times. */
	unit = UNIT;
	__TEST_REQUIRE(unit <= SZ_2M, "Units of %lu bytes take too long", unit);

	while ((opt = getopt(argc, argv, "hm:s:n:")) != -1) {
		switch (opt) {
		case 's':
			src_type = parse_backing_src_type(optarg);
			break;
		case 'n':
			nr_vcpus = atoi_positive("nr_vcpus", optarg);
			break;
		case 'm':
			nr_memslots = atoi_positive("nr_memslots", optarg);
			break;
		case 'h':
		default:
			usage(argv[0]);
			exit(0);
		}
	}

	test_mem_conversions(src_type, nr_vcpus, nr_memslots);
	/* Slots of 1M, in which neither half has room for a huge page. */
	if (optind == 1)
		test_mem_conversions(src_type, 2, 8);

	return 0;
}
