// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_PRE_FAULT_MEMORY in one task, deletion of memslots in another.
 *
 * Deleting a memslot waits until every reader of kvm->srcu has gone, and may
 * throw away the roots of the page tables.  A task that prefaults memory is
 * such a reader and uses such a root, so it must neither wait for the deletion
 * nor stick to the root: either way both tasks would be stuck for ever.
 */
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <linux/sizes.h>

#include "test_util.h"
#include "kvm_util.h"
#include "processor.h"

/* Arbitrarily chosen values that collide with nothing of the framework. */
#define PF_SLOT			10
#define PF_GPA			0xc0000000ull
#define PF_SIZE			SZ_1M
#define OTHER_SLOT		11
#define OTHER_GPA		0xd0000000ull

#define NR_DELETIONS		40
/* Not a single deletion within this many seconds means there never will be. */
#define STUCK_SECONDS		20

struct slot {
	struct kvm_vm *vm;
	u32 id;
	u32 flags;
	u64 gpa;
	u64 size;
	void *hva;
	int gmem;
};

static int nr_deleted;
static bool worker_done;
static bool stuck;

static void sigalrm_handler(int sig)
{
	static const char msg[] = "KVM_PRE_FAULT_MEMORY ignores signals\n";

	/* The interrupted ioctl() gets a chance to return, but only one. */
	if (READ_ONCE(stuck)) {
		if (write(STDERR_FILENO, msg, sizeof(msg) - 1) < 0)
			_exit(2);
		_exit(1);
	}

	WRITE_ONCE(stuck, true);
	alarm(STUCK_SECONDS);
}

static void create_slot(struct slot *slot)
{
	vm_set_user_memory_region2(slot->vm, slot->id, slot->flags, slot->gpa,
				   slot->size, slot->hva, slot->gmem, 0);
}

static void delete_slot(struct slot *slot)
{
	vm_set_user_memory_region2(slot->vm, slot->id, 0, slot->gpa, 0, 0, 0, 0);
}

static void *delete_and_create(void *data)
{
	struct slot *slot = data;
	int i;

	for (i = 0; i < NR_DELETIONS; i++) {
		/* Meet the prefaulting task at a different place each time. */
		usleep(500 + 211 * (i % 16));

		delete_slot(slot);
		create_slot(slot);

		__atomic_add_fetch(&nr_deleted, 1, __ATOMIC_RELAXED);
		alarm(STUCK_SECONDS);
	}

	__atomic_store_n(&worker_done, true, __ATOMIC_RELEASE);
	return NULL;
}

static bool prefault_may_fail_with(int err, struct slot *victim)
{
	/* Only what is being deleted may fail. */
	if (victim->id != PF_SLOT)
		return false;

	/* Being deleted, or gone; a private page that is gone is a fault. */
	return err == EAGAIN || err == ENOENT ||
	       (err == EFAULT && (victim->flags & KVM_MEM_GUEST_MEMFD));
}

static void guest_code(void)
{
	u64 offset;

	for (offset = 0; offset < PF_SIZE; offset += PAGE_SIZE)
		READ_ONCE(*(u64 *)(PF_GPA + offset));

	GUEST_DONE();
}

static void test_deletion(const char *name, unsigned long vm_type,
			  u32 victim_id, bool private)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = vm_type,
	};
	struct slot slots[] = {
		{
			.id = PF_SLOT,
			.gpa = PF_GPA,
			.size = PF_SIZE,
			.flags = private ? KVM_MEM_GUEST_MEMFD : 0,
		}, {
			.id = OTHER_SLOT,
			.gpa = OTHER_GPA,
			.size = PAGE_SIZE,
		},
	};
	struct slot *victim = &slots[victim_id == OTHER_SLOT];
	unsigned long nr_calls = 0, nr_failed = 0;
	struct kvm_pre_fault_memory range;
	struct kvm_vcpu *vcpu;
	pthread_t worker;
	struct kvm_vm *vm;
	struct ucall uc;
	int i, ret;

	vm = vm_create_shape_with_one_vcpu(shape, &vcpu, guest_code);

	for (i = 0; i < ARRAY_SIZE(slots); i++) {
		slots[i].vm = vm;
		slots[i].hva = mmap(NULL, slots[i].size, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		TEST_ASSERT(slots[i].hva != MAP_FAILED, "mmap() failed");
		if (slots[i].flags & KVM_MEM_GUEST_MEMFD)
			slots[i].gmem = vm_create_guest_memfd(vm, PF_SIZE, 0);
		create_slot(&slots[i]);
	}

	if (private)
		vm_mem_set_private(vm, PF_GPA, PF_SIZE);

	virt_map(vm, PF_GPA, PF_GPA, PF_SIZE / PAGE_SIZE);

	nr_deleted = 0;
	worker_done = false;
	WRITE_ONCE(stuck, false);
	alarm(STUCK_SECONDS);
	pthread_create(&worker, NULL, delete_and_create, victim);

	while (!__atomic_load_n(&worker_done, __ATOMIC_ACQUIRE)) {
		range = (struct kvm_pre_fault_memory) {
			.gpa = PF_GPA,
			.size = PF_SIZE,
		};

		ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
		nr_calls++;
		if (READ_ONCE(stuck))
			TEST_FAIL("%s: stuck, %d of %d deletions done after %lu prefaults",
				  name, __atomic_load_n(&nr_deleted, __ATOMIC_RELAXED),
				  NR_DELETIONS, nr_calls);

		if (ret && errno != EINTR) {
			TEST_ASSERT(prefault_may_fail_with(errno, victim),
				    "%s: KVM_PRE_FAULT_MEMORY failed, errno: %d (%s)",
				    name, errno, strerror(errno));
			nr_failed++;
		}

		/* Have something left to fault in the next time. */
		if (!private)
			TEST_ASSERT(!madvise(slots[0].hva, PF_SIZE, MADV_DONTNEED),
				    "madvise() failed, errno: %d", errno);
	}

	pthread_join(worker, NULL);

	/* With all the slots in place again prefaulting succeeds... */
	range = (struct kvm_pre_fault_memory) { .gpa = PF_GPA, .size = PF_SIZE };
	do {
		vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
	} while (range.size && !READ_ONCE(stuck));
	TEST_ASSERT(!range.size, "%s: 0x%llx bytes not prefaulted", name, range.size);

	/* ... and the guest finds its memory. */
	vcpu_run(vcpu);
	alarm(0);
	TEST_ASSERT(get_ucall(vcpu, &uc) == UCALL_DONE,
		    "%s: the guest did not finish, exit reason %u (%s)", name,
		    vcpu->run->exit_reason, exit_reason_str(vcpu->run->exit_reason));

	pr_info("%s: %d deletions, %lu prefaults, %lu of them failed\n",
		name, nr_deleted, nr_calls, nr_failed);

	for (i = 0; i < ARRAY_SIZE(slots); i++) {
		delete_slot(&slots[i]);
		munmap(slots[i].hva, slots[i].size);
		if (slots[i].flags & KVM_MEM_GUEST_MEMFD)
			close(slots[i].gmem);
	}
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	const struct sigaction sa = { .sa_handler = sigalrm_handler };

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_USER_MEMORY2));
	/* Prefaulting needs two-dimensional paging. */
	TEST_REQUIRE(kvm_is_tdp_enabled());

	sigaction(SIGALRM, &sa, NULL);

	/* Everything that is pr_info() must be out before an _exit(). */
	setbuf(stdout, NULL);

	if (kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)) {
		test_deletion("protected VM, the prefaulted slot, private",
			      KVM_X86_SW_PROTECTED_VM, PF_SLOT, true);
		test_deletion("protected VM, the prefaulted slot, shared",
			      KVM_X86_SW_PROTECTED_VM, PF_SLOT, false);
		test_deletion("protected VM, another slot",
			      KVM_X86_SW_PROTECTED_VM, OTHER_SLOT, true);
	}

	test_deletion("default VM, the prefaulted slot",
		      VM_TYPE_DEFAULT, PF_SLOT, false);
	test_deletion("default VM, another slot",
		      VM_TYPE_DEFAULT, OTHER_SLOT, false);

	return 0;
}
