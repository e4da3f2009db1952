// SPDX-License-Identifier: GPL-2.0
/*
 * Creating, changing and deleting KVM_MEM_PRIVATE slots: every error of the
 * ABI, through KVM_SET_USER_MEMORY_REGION2 and through
 * KVM_SET_USER_MEMORY_REGION, and the rule that content has one owner.  A call
 * that fails must not have changed anything.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "private_memfd.h"

/* Slots are made of pages, whatever the unit. */
#define SIZE		max_t(uint64_t, SZ_2M, UNIT)
#define SIZE_PAGES	(SIZE / PAGE_SIZE)
#define FILE_SIZE	(4 * SIZE)

/* The first version of the struct is the start of the second. */
#define V1_SIZE		sizeof(struct kvm_userspace_memory_region)

FIXTURE(slot) {
	struct kvm_vm *vm;
	struct kvm_userspace_memory_region2 good;
	unsigned long ioctl;
	int fd;
};

FIXTURE_VARIANT(slot) {
	unsigned long ioctl;
};

FIXTURE_VARIANT_ADD(slot, region2) {
	.ioctl = KVM_SET_USER_MEMORY_REGION2,
};

FIXTURE_VARIANT_ADD(slot, region) {
	.ioctl = KVM_SET_USER_MEMORY_REGION,
};

FIXTURE_SETUP(slot)
{
	self->vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	self->fd = private_memfd(FILE_SIZE);
	self->ioctl = variant->ioctl;
	self->good = (struct kvm_userspace_memory_region2) {
		.slot = PRIVATE_SLOT,
		.flags = KVM_MEM_PRIVATE,
		.guest_phys_addr = PRIVATE_GPA,
		.memory_size = SIZE,
		.userspace_addr = (uintptr_t)map_shared_half(SIZE),
		.private_fd = self->fd,
		.private_offset = SIZE,
	};
}

FIXTURE_TEARDOWN(slot)
{
	kvm_vm_free(self->vm);
	close(self->fd);
}

#define slot_data FIXTURE_DATA(slot)

static int set_region(slot_data *self, const void *region)
{
	return ioctl(self->vm->fd, self->ioctl, region);
}

static int delete_region(slot_data *self, uint32_t slot)
{
	const struct kvm_userspace_memory_region2 region = { .slot = slot };

	return set_region(self, &region);
}

/* The range of the file, the slot and the gpa are free. */
static void assert_good(slot_data *self)
{
	TEST_ASSERT(!set_region(self, &self->good), "A proper slot can't be set: %s",
		    strerror(errno));
	TEST_ASSERT(!delete_region(self, self->good.slot), "A slot can't be deleted: %s",
		    strerror(errno));
}

/* The region is refused, by one of two errors, and nothing has changed. */
static void __assert_refused(slot_data *self, const struct kvm_userspace_memory_region2 *region,
			     int error, int other, const char *what)
{
	int r = set_region(self, region);

	TEST_ASSERT(r == -1 && (errno == error || errno == other),
		    "%s: wanted %s, got %d (%s)", what, strerror(error), r,
		    r ? strerror(errno) : "success");
	assert_good(self);
}

#define assert_refused(self, error, changes...)					\
do {										\
	slot_data *__self = self;						\
	struct kvm_userspace_memory_region2 region = __self->good;		\
	int __error = error;							\
										\
	changes;								\
	__assert_refused(__self, &region, __error, __error, #changes);		\
} while (0)

static void assert_fd_refused(slot_data *self, int fd, int error, int other, const char *what)
{
	struct kvm_userspace_memory_region2 region = self->good;

	TEST_ASSERT(fd >= 0, "Can't get %s: %s", what, strerror(errno));
	region.private_fd = fd;
	__assert_refused(self, &region, error, other, what);
	close(fd);
}

static int reopen(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

TEST_F(slot, capability)
{
	struct kvm_vm *vm = vm_create_barebones();
	unsigned int cap = kvm_check_cap(KVM_CAP_PRIVATE_MEM);

	TEST_ASSERT(cap & private_backing()->store && !(cap & ~PRIVATE_MEM_ALL),
		    "KVM_CAP_PRIVATE_MEM of /dev/kvm: %#x", cap);
	TEST_ASSERT_EQ(vm_check_cap(self->vm, KVM_CAP_PRIVATE_MEM), cap);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_PRIVATE_MEM), 0);
	kvm_vm_free(vm);
}

TEST_F(slot, file_descriptors)
{
	struct kvm_userspace_memory_region2 region = self->good;
	int pipes[2], sockets[2], fd;

	assert_refused(self, EBADF, region.private_fd = -1);
	assert_refused(self, EBADF, region.private_fd = 1000);
	assert_refused(self, EBADF, region.private_fd = INT_MAX);
	assert_refused(self, EBADF, region.private_fd = 1u << 31);
	fd = dup(self->fd);
	close(fd);
	assert_refused(self, EBADF, region.private_fd = fd);

	assert_fd_refused(self, reopen(self->fd, O_RDONLY), EBADF, EBADF, "read-only fd");
	assert_fd_refused(self, reopen(self->fd, O_WRONLY), EBADF, EBADF, "write-only fd");
	assert_fd_refused(self, reopen(self->fd, O_PATH), EBADF, EBADF, "O_PATH fd");

	assert_fd_refused(self, open("/dev/zero", O_RDWR), EINVAL, EINVAL, "device");
	assert_fd_refused(self, open("/tmp", O_RDWR | O_TMPFILE, 0600), EINVAL, EINVAL, "file");
	assert_fd_refused(self, open("/", O_RDONLY | O_DIRECTORY), EBADF, EINVAL, "directory");
	assert_fd_refused(self, eventfd(0, 0), EINVAL, EINVAL, "eventfd");
	assert_fd_refused(self, open_kvm_dev_path_or_exit(), EINVAL, EINVAL, "/dev/kvm");
	assert_fd_refused(self, dup(self->vm->fd), EINVAL, EINVAL, "VM");
	TEST_ASSERT(!pipe(pipes) && !socketpair(AF_UNIX, SOCK_STREAM, 0, sockets),
		    "Can't get pipes and sockets: %s", strerror(errno));
	assert_fd_refused(self, pipes[0], EBADF, EINVAL, "pipe to read");
	assert_fd_refused(self, pipes[1], EBADF, EINVAL, "pipe to write");
	assert_fd_refused(self, sockets[0], EINVAL, EINVAL, "socket");
	assert_fd_refused(self, sockets[1], EINVAL, EINVAL, "socket");

	assert_fd_refused(self, backing_memfd(FILE_SIZE, 0), EINVAL, EINVAL, "plain memfd");
	fd = backing_memfd(FILE_SIZE, MFD_ALLOW_SEALING);
	TEST_ASSERT(!fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK), "F_ADD_SEALS failed");
	assert_fd_refused(self, fd, EINVAL, EINVAL, "memfd with other seals");
	fd = backing_memfd(FILE_SIZE, MFD_NOEXEC_SEAL);
	assert_fd_refused(self, fd, EINVAL, EINVAL, "memfd without execution");
	if (kvm_has_cap(KVM_CAP_GUEST_MEMFD)) {
		fd = vm_create_guest_memfd(self->vm, FILE_SIZE, 0);
		assert_fd_refused(self, fd, EINVAL, EINVAL, "guest_memfd");
	}

	/* An inaccessible memfd it must be, which of its fds doesn't matter. */
	region.private_fd = reopen(self->fd, O_RDWR);
	TEST_ASSERT(!set_region(self, &region), "A reopened fd is refused: %s", strerror(errno));
	close(region.private_fd);
	TEST_ASSERT(!delete_region(self, region.slot), "Deletion failed: %s", strerror(errno));

	/* The other way round. */
	if (kvm_has_cap(KVM_CAP_GUEST_MEMFD)) {
		int r = __vm_set_user_memory_region2(self->vm, PRIVATE_SLOT, KVM_MEM_GUEST_MEMFD,
						     PRIVATE_GPA, SIZE, NULL, self->fd, SIZE);

		TEST_ASSERT(r == -1 && errno == EINVAL, "Taken as a guest_memfd: %d (%s)",
			    r, strerror(errno));
	}
}

TEST_F(slot, ranges)
{
	uint64_t offset;
	int fd;

	for (offset = 1; offset < PAGE_SIZE; offset = offset * 2 + 1)
		assert_refused(self, EINVAL, region.private_offset = SIZE + offset);
	assert_refused(self, EINVAL, region.private_offset = -1ull);

	/* Not all of it is inside the file. */
	assert_refused(self, EINVAL, region.private_offset = FILE_SIZE - SIZE + PAGE_SIZE);
	assert_refused(self, EINVAL, region.private_offset = FILE_SIZE);
	assert_refused(self, EINVAL, region.private_offset = 1ull << 33);
	assert_refused(self, EINVAL, region.private_offset = (1ull << 33) + SIZE);
	assert_refused(self, EINVAL, region.private_offset = 1ull << 44);
	assert_refused(self, EINVAL, region.private_offset = 1ull << 62);
	assert_refused(self, EINVAL, region.private_offset = 1ull << 63);
	assert_refused(self, EINVAL, region.private_offset = (1ull << 63) - SIZE);
	assert_refused(self, EINVAL, region.private_offset = (1ull << 63) - PAGE_SIZE);
	assert_refused(self, EINVAL, region.private_offset = -SIZE);
	assert_refused(self, EINVAL, region.private_offset = -SIZE + PAGE_SIZE);
	assert_refused(self, EINVAL, region.private_offset = -PAGE_SIZE);
	assert_refused(self, EINVAL, region.memory_size = FILE_SIZE);
	assert_refused(self, EINVAL, region.memory_size = FILE_SIZE + PAGE_SIZE;
		       region.private_offset = 0);

	/* Sizes that no slot can have, zero with nothing to delete. */
	assert_refused(self, EINVAL, region.memory_size = 0);
	assert_refused(self, EINVAL, region.memory_size = 1);
	assert_refused(self, EINVAL, region.memory_size = SIZE - 1);
	assert_refused(self, EINVAL, region.memory_size = 1ull << 43);
	assert_refused(self, EINVAL, region.memory_size = 1ull << 63);
	assert_refused(self, EINVAL, region.memory_size = -PAGE_SIZE);
	assert_refused(self, EINVAL, region.memory_size = -1ull);

	assert_refused(self, EINVAL, region.guest_phys_addr = PRIVATE_GPA + 1);
	assert_refused(self, EINVAL, region.guest_phys_addr = -PAGE_SIZE);
	assert_refused(self, EINVAL, region.guest_phys_addr = -SIZE);
	assert_refused(self, EINVAL, region.userspace_addr++);
	assert_refused(self, EINVAL, region.userspace_addr = -SIZE);
	assert_refused(self, EINVAL, region.slot = kvm_check_cap(KVM_CAP_NR_MEMSLOTS));
	assert_refused(self, EINVAL, region.slot |= 1 << 16);

	/* A file that has no size yet. */
	fd = memfd_create("empty", private_backing()->memfd_flags | MFD_INACCESSIBLE);
	TEST_ASSERT(fd >= 0, "memfd_create() failed: %s", strerror(errno));
	assert_refused(self, EINVAL, region.private_fd = fd);
	assert_refused(self, EINVAL, region.private_fd = fd; region.private_offset = 0);
	close(fd);
}

/*
 * More than this machine can address: fails late, when the file is bound
 * already.
 */
TEST_F(slot, fails_after_bind)
{
	uint64_t end = self->vm->max_gfn + 1;
	struct kvm_vm *vm;

	if (end >= 1ull << 51)
		SKIP(return, "There is no gpa beyond what can be addressed");

	assert_refused(self, EINVAL, region.guest_phys_addr = end << PAGE_SHIFT << 1);

	/* Nobody has become its owner by that, or at least not for good. */
	vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	vm_add_private(vm, 0, PRIVATE_GPA, SIZE, NULL, self->fd, 0);
	kvm_vm_free(vm);
}

TEST_F(slot, flags)
{
	int i;

	for (i = 0; i < 32; i++) {
		if (BIT(i) != KVM_MEM_PRIVATE)
			assert_refused(self, EINVAL, region.flags |= BIT(i));
	}
	assert_refused(self, EINVAL, region.flags |= KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY);
	assert_refused(self, EINVAL, region.flags = -1);

	/* Flags come before the fd. */
	assert_refused(self, EINVAL, region.flags |= KVM_MEM_READONLY; region.private_fd = -1);
}

TEST_F(slot, pads)
{
	struct kvm_userspace_memory_region2 region = self->good;
	int i;

	assert_refused(self, EINVAL, region.pad1 = 1);
	assert_refused(self, EINVAL, region.pad1 = 1u << 31);
	for (i = 0; i < ARRAY_SIZE(region.pad2); i++) {
		assert_refused(self, EINVAL, region.pad2[i] = 1);
		assert_refused(self, EINVAL, region.pad2[i] = 1ull << 63);
	}

	/* Before the fd. */
	assert_refused(self, EINVAL, region.pad1 = 1; region.private_fd = -1);
	assert_refused(self, EINVAL, region.pad2[13] = 1; region.private_fd = -1);

	/* Slots of other kinds never minded. */
	region.flags = 0;
	region.private_fd = -1;
	region.pad1 = 1;
	region.pad2[13] = 1;
	TEST_ASSERT(!set_region(self, &region), "An ordinary slot is refused: %s", strerror(errno));
	TEST_ASSERT(!delete_region(self, region.slot), "Deletion failed: %s", strerror(errno));
}

/* Every overlap of two ranges of one file; side by side they are fine. */
TEST_F(slot, overlaps)
{
	struct kvm_userspace_memory_region2 region = self->good;
	const uint64_t size = SIZE_PAGES, last = size - 1;
	const struct {
		int64_t offset;		/* in pages, from the start of the bound range */
		uint64_t nr;
		bool ok;
	} tries[] = {
		{ 0, size }, { 0, 1 }, { last, 1 }, { 1, size - 2 }, { -1, 2 }, { -1, size + 2 },
		{ -size, size + 1 }, { -size, 3 * size }, { last, 2 }, { last, size + 1 },
		{ -1, 1, true }, { size, 1, true }, { -size, size, true }, { size, size, true },
	};
	int i, r;

	TEST_ASSERT(!set_region(self, &self->good), "A proper slot can't be set: %s",
		    strerror(errno));
	region.slot++;
	region.guest_phys_addr *= 2;
	for (i = 0; i < ARRAY_SIZE(tries); i++) {
		region.private_offset = SIZE + tries[i].offset * PAGE_SIZE;
		region.memory_size = tries[i].nr * PAGE_SIZE;
		r = set_region(self, &region);
		if (tries[i].ok) {
			TEST_ASSERT(!r, "Try %d: %s", i, strerror(errno));
			TEST_ASSERT(!delete_region(self, region.slot), "Deletion failed: %s",
				    strerror(errno));
		} else {
			TEST_ASSERT(r == -1 && errno == EEXIST,
				    "Try %d: wanted EEXIST, got %d (%s)", i, r, strerror(errno));
		}
	}

	/* The other kind of overlap: not even the file has anything to do with it. */
	region = self->good;
	region.slot++;
	region.private_offset = 0;
	r = set_region(self, &region);
	TEST_ASSERT(r == -1 && errno == EEXIST, "Same gpa: wanted EEXIST, got %d (%s)",
		    r, strerror(errno));

	/* Another file is no overlap. */
	region.private_fd = private_memfd(FILE_SIZE);
	region.guest_phys_addr *= 2;
	region.private_offset = self->good.private_offset;
	TEST_ASSERT(!set_region(self, &region), "Another file: %s", strerror(errno));
	close(region.private_fd);
}

/* Only a slot that does not exist can become a private one, and it stays as it is. */
TEST_F(slot, changes)
{
	struct kvm_userspace_memory_region2 region, old;
	static const uint32_t kinds[] = {
		0, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEM_PRIVATE,
	};
	void *hva = map_shared_half(SIZE);
	int from, to, move, r;

	for (from = 0; from < ARRAY_SIZE(kinds); from++) {
		for (to = 0; to < ARRAY_SIZE(kinds); to++) {
			if (kinds[from] != KVM_MEM_PRIVATE && kinds[to] != KVM_MEM_PRIVATE)
				continue;
			for (move = 0; move < 7; move++) {
				old = self->good;
				old.flags = kinds[from];
				TEST_ASSERT(!set_region(self, &old), "Slot with flags %#x: %s",
					    old.flags, strerror(errno));
				region = old;
				region.flags = kinds[to];
				if (move == 1)
					region.guest_phys_addr += SIZE;
				if (move == 2)
					region.userspace_addr = (uintptr_t)hva;
				if (move == 3)
					region.memory_size = PAGE_SIZE;
				if (move == 4)
					region.private_offset = 0;
				if (move == 5)
					region.private_fd = -1;
				if (move == 6)
					region.memory_size = SIZE + PAGE_SIZE;
				r = set_region(self, &region);
				TEST_ASSERT(r == -1 && errno == EINVAL,
					    "Flags %#x to %#x, move %d: wanted EINVAL, got %d (%s)",
					    kinds[from], kinds[to], move, r,
					    r ? strerror(errno) : "success");

				/* The range is as bound as before. */
				region = self->good;
				region.slot++;
				region.guest_phys_addr *= 2;
				r = set_region(self, &region);
				if (kinds[from] == KVM_MEM_PRIVATE) {
					TEST_ASSERT(r == -1 && errno == EEXIST,
						    "Unbound by a failed change: %d", r);
				} else {
					TEST_ASSERT(!r, "Bound by a failed change: %s",
						    strerror(errno));
					delete_region(self, region.slot);
				}
				TEST_ASSERT(!delete_region(self, old.slot), "Deletion failed: %s",
					    strerror(errno));
			}
		}
	}

	if (!kvm_has_cap(KVM_CAP_GUEST_MEMFD))
		return;

	/* To and from the other kind of private memory. */
	region = self->good;
	region.flags = KVM_MEM_GUEST_MEMFD;
	region.guest_memfd_offset = 0;
	region.guest_memfd = vm_create_guest_memfd(self->vm, SIZE, 0);
	TEST_ASSERT(!ioctl(self->vm->fd, KVM_SET_USER_MEMORY_REGION2, &region),
		    "A guest_memfd can't be bound: %s", strerror(errno));
	r = set_region(self, &self->good);
	TEST_ASSERT(r == -1 && errno == EINVAL, "From guest_memfd: %d (%s)", r, strerror(errno));
	TEST_ASSERT(!delete_region(self, region.slot), "Deletion failed: %s", strerror(errno));

	TEST_ASSERT(!set_region(self, &self->good), "A proper slot can't be set: %s",
		    strerror(errno));
	r = ioctl(self->vm->fd, KVM_SET_USER_MEMORY_REGION2, &region);
	TEST_ASSERT(r == -1 && errno == EINVAL, "To guest_memfd: %d (%s)", r, strerror(errno));
	close(region.guest_memfd);
}

/* Whatever the flags say, size zero deletes. */
TEST_F(slot, deletion)
{
	struct kvm_userspace_memory_region2 region;
	int i;

	for (i = 0; i < 4; i++) {
		TEST_ASSERT(!set_region(self, &self->good), "A proper slot can't be set: %s",
			    strerror(errno));
		region = self->good;
		region.memory_size = 0;
		if (i & 1)
			region.private_fd = -1;
		if (i & 2)
			region.flags = 0;
		TEST_ASSERT(!set_region(self, &region), "Deletion %d failed: %s", i,
			    strerror(errno));
		assert_refused(self, EINVAL, region.memory_size = 0);
	}
}

/* How much of the struct is read. */
TEST_F(slot, end_of_memory)
{
	void *p = mmap(NULL, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region2 *region = p + PAGE_SIZE - V1_SIZE;
	struct kvm_userspace_memory_region *v1 = (void *)region;
	int r;

	TEST_ASSERT(p != MAP_FAILED && !munmap(p + PAGE_SIZE, PAGE_SIZE),
		    "mmap() failed: %s", strerror(errno));

	/* Not enough of it to set a private slot. */
	memcpy(v1, &self->good, V1_SIZE);
	r = set_region(self, region);
	TEST_ASSERT(r == -1 && errno == EFAULT, "Wanted EFAULT, got %d (%s)", r, strerror(errno));
	assert_good(self);
	r = set_region(self, NULL);
	TEST_ASSERT(r == -1 && errno == EFAULT, "Wanted EFAULT, got %d (%s)", r, strerror(errno));

	if (self->ioctl != KVM_SET_USER_MEMORY_REGION)
		return;

	/* Enough to delete one, and for all that the old flags can do. */
	TEST_ASSERT(!set_region(self, &self->good), "A proper slot can't be set: %s",
		    strerror(errno));
	v1->memory_size = 0;
	TEST_ASSERT(!set_region(self, region), "Deletion failed: %s", strerror(errno));
	v1->memory_size = SIZE;
	v1->flags = KVM_MEM_LOG_DIRTY_PAGES;
	TEST_ASSERT(!set_region(self, region), "An ordinary slot is refused: %s", strerror(errno));
	v1->flags = 0;
	TEST_ASSERT(!set_region(self, region), "Its flags can't be changed: %s", strerror(errno));
	v1->memory_size = 0;
	TEST_ASSERT(!set_region(self, region), "Deletion failed: %s", strerror(errno));
	assert_good(self);
}

static struct kvm_userspace_memory_region2 racing_region;
static bool racing_wrong, racing_stop;

/* What it changes to is good at any moment; or not, if it is to be wrong. */
static void *racing_thread(void *arg)
{
	static const uint32_t flags[] = {
		KVM_MEM_PRIVATE, KVM_MEM_LOG_DIRTY_PAGES,
		KVM_MEM_PRIVATE | KVM_MEM_LOG_DIRTY_PAGES,
	};
	const uint64_t size = racing_region.memory_size;
	unsigned int i;

	for (i = 0; !READ_ONCE(racing_stop); i++) {
		WRITE_ONCE(racing_region.flags, flags[i % (racing_wrong ? 3 : 2)]);
		if (i % 5 == 0 && racing_wrong)
			WRITE_ONCE(racing_region.memory_size, 0);
		if (i % 5 == 1)
			WRITE_ONCE(racing_region.memory_size, size);
		/* In case there is one CPU only. */
		if (i % 1024 == 0)
			sched_yield();
	}
	return NULL;
}

static pthread_t racing_start(const struct kvm_userspace_memory_region2 *good, bool wrong)
{
	pthread_t thread;

	racing_region = *good;
	racing_wrong = wrong;
	racing_stop = false;
	pthread_create(&thread, NULL, racing_thread, NULL);
	return thread;
}

static void racing_end(pthread_t thread)
{
	WRITE_ONCE(racing_stop, true);
	pthread_join(thread, NULL);
}

/*
 * The struct changes while the kernel reads it, the slot that results is of one
 * kind or the other all the same: with the file and no dirty log, or the reverse.
 */
TEST_F_TIMEOUT(slot, changed_meanwhile, TIMEOUT)
{
	unsigned long i, private = 0, ordinary = 0, refused = 0, torn = 0;
	struct kvm_memory_attributes attributes = {
		.address = self->good.guest_phys_addr,
		.size = self->good.memory_size,
	};
	uint8_t *bitmap = calloc(SIZE_PAGES / 8, 1);
	struct kvm_dirty_log log = {
		.slot = self->good.slot,
		.dirty_bitmap = bitmap,
	};
	pthread_t thread;

	if (!(kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES) & KVM_MEMORY_ATTRIBUTE_PRIVATE))
		SKIP(return, "There is no KVM_SET_MEMORY_ATTRIBUTES");

	thread = racing_start(&self->good, true);
	for (i = 0; i < scaled(5000) || private < 10 || ordinary < 10; i++) {
		bool is_private, is_logged;

		if (set_region(self, &racing_region)) {
			TEST_ASSERT(errno == EINVAL, "Wanted EINVAL, got %s", strerror(errno));
			/* Leave the CPU to the other thread, if there is one only. */
			if (refused++ % 64 == 0)
				usleep(100);
			continue;
		}

		is_private = ioctl(self->vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &attributes);
		is_logged = !ioctl(self->vm->fd, KVM_GET_DIRTY_LOG, &log);
		TEST_ASSERT(is_private != is_logged, "The slot is private: %d, logged: %d",
			    is_private, is_logged);
		private += is_private;
		ordinary += !is_private;
		TEST_ASSERT(!delete_region(self, self->good.slot), "Deletion failed: %s",
			    strerror(errno));
	}
	racing_end(thread);

	/* The old ioctl looks at the flags first: it refuses what they are not any more. */
	thread = racing_start(&self->good, false);
	for (i = 0; i < 1000 || (self->ioctl == KVM_SET_USER_MEMORY_REGION && !torn); i++) {
		if (set_region(self, &racing_region))
			torn++;
		else
			delete_region(self, self->good.slot);
	}
	racing_end(thread);
	pr_info("# %lu private, %lu ordinary, %lu refused, %lu for a change\n", private, ordinary,
		refused, torn);
	TEST_ASSERT(refused, "What is wrong was not refused");
	TEST_ASSERT(!torn || self->ioctl == KVM_SET_USER_MEMORY_REGION, "Refused without a reason");
	assert_good(self);
	free(bitmap);
}

/* The VM has to be of the right type, and so has the MMU. */
TEST_F(slot, vm_type)
{
	uint32_t types = kvm_check_cap(KVM_CAP_VM_TYPES);
	struct kvm_userspace_memory_region2 region;
	int type, r;

	for (type = 0; type < 32; type++) {
		int fd;

		if (!(types & BIT(type)) || type == KVM_X86_SW_PROTECTED_VM)
			continue;
		fd = ioctl(self->vm->kvm_fd, KVM_CREATE_VM, (unsigned long)type);
		if (fd < 0)
			continue;
		region = self->good;
		r = ioctl(fd, self->ioctl, &region);
		TEST_ASSERT(r == -1 && errno == EINVAL, "Type %d: wanted EINVAL, got %d (%s)",
			    type, r, strerror(errno));
		TEST_ASSERT(!ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_PRIVATE_MEM),
			    "Type %d claims KVM_CAP_PRIVATE_MEM", type);
		/* Before the fd. */
		region.private_fd = -1;
		r = ioctl(fd, self->ioctl, &region);
		TEST_ASSERT(r == -1 && errno == EINVAL, "Type %d: wanted EINVAL, got %d (%s)",
			    type, r, strerror(errno));
		close(fd);
	}
	assert_good(self);
}

/* Content has one owner, from the first bind until the file is empty and unbound. */
FIXTURE(owner) {
	struct kvm_vm *a, *b;
	int fd;
};

FIXTURE_SETUP(owner)
{
	self->a = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	self->b = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	self->fd = private_memfd(FILE_SIZE);
}

FIXTURE_TEARDOWN(owner)
{
	kvm_vm_free(self->b);
	close(self->fd);
}

#define owner_data FIXTURE_DATA(owner)

static void assert_bind(owner_data *self, struct kvm_vm *vm, uint64_t offset, int error)
{
	int r = __vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, NULL, self->fd, offset);

	TEST_ASSERT(error ? r == -1 && errno == error : !r,
		    "Binding at %#lx: wanted %s, got %d (%s)",
		    offset, strerror(error), r, r ? strerror(errno) : "success");
}

static void unbind(struct kvm_vm *vm)
{
	vm_delete_private(vm, PRIVATE_SLOT);
}

TEST_F(owner, empty)
{
	/* Bound and empty, unbound and empty. */
	assert_bind(self, self->a, 0, 0);
	assert_bind(self, self->b, 0, EBUSY);
	assert_bind(self, self->b, SIZE, EBUSY);
	unbind(self->a);
	assert_bind(self, self->b, SIZE, 0);
	assert_bind(self, self->a, 0, EBUSY);
	unbind(self->b);

	/* It has been full meanwhile. */
	assert_bind(self, self->a, 0, 0);
	memfd_to_private(self->fd, 0, FILE_SIZE);
	memfd_to_shared(self->fd, 0, FILE_SIZE);
	assert_bind(self, self->b, 0, EBUSY);
	unbind(self->a);
	assert_bind(self, self->b, 0, 0);
	kvm_vm_free(self->a);
}

TEST_F(owner, content)
{
	uint64_t last = FILE_SIZE - UNIT;

	/* Before anybody binds it nobody owns it; the first one does then. */
	memfd_to_private(self->fd, last, UNIT);
	assert_bind(self, self->a, 0, 0);
	assert_bind(self, self->b, SIZE, EBUSY);
	unbind(self->a);

	/* One page is enough, also one that was never in a slot. */
	assert_bind(self, self->b, 0, EBUSY);
	assert_bind(self, self->b, 3 * SIZE, EBUSY);
	assert_bind(self, self->a, SIZE, 0);
	unbind(self->a);
	assert_bind(self, self->a, 3 * SIZE, 0);
	unbind(self->a);
	assert_bind(self, self->b, SIZE, EBUSY);

	/* Emptied without a binding. */
	memfd_to_shared(self->fd, last, UNIT);
	assert_bind(self, self->b, SIZE, 0);
	assert_bind(self, self->a, 0, EBUSY);
	unbind(self->b);

	/* Allocated again, unbound, by nobody in particular. */
	memfd_to_private(self->fd, 0, UNIT);
	assert_bind(self, self->a, SIZE, 0);
	assert_bind(self, self->b, 0, EBUSY);
	kvm_vm_free(self->a);
}

/* The content outlives its owner, and so does the ownership. */
TEST_F(owner, dead)
{
	int i;

	assert_bind(self, self->a, 0, 0);
	memfd_to_private(self->fd, 0, UNIT);
	kvm_vm_free(self->a);
	assert_bind(self, self->b, 0, EBUSY);
	assert_bind(self, self->b, SIZE, EBUSY);

	/* Not for a VM that happens to be where the old one was. */
	for (i = 0; i < 50; i++) {
		struct kvm_vm *vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);

		assert_bind(self, vm, 0, EBUSY);
		kvm_vm_free(vm);
	}

	memfd_to_shared(self->fd, 0, FILE_SIZE);
	assert_bind(self, self->b, 0, 0);
}

/* Where a guest has to look at the memory to tell. */
FIXTURE(guest) {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct agent *agent;
	uint64_t *hva;
	int fd;
};

#define GUEST_PAGES	nr_units(16, 16, 2)
#define GUEST_SIZE	(GUEST_PAGES * UNIT)

FIXTURE_SETUP(guest)
{
	int i, j;

	self->vm = vm_create_private(1, agent_code, &self->vcpu);
	self->agent = agent_create(self->vcpu);
	self->fd = private_memfd(GUEST_SIZE);
	self->hva = map_shared_half(GUEST_SIZE);
	for (i = 0; i < GUEST_PAGES; i++)
		for (j = 0; j < NR_PROBES; j++)
			probe_write((void *)self->hva + i * UNIT, j, 0x5ed);
	virt_map_private(self->vm, PRIVATE_GPA - GUEST_SIZE, 3 * GUEST_SIZE);
}

FIXTURE_TEARDOWN(guest)
{
	kvm_vm_free(self->vm);
	close(self->fd);
}

#define guest_data FIXTURE_DATA(guest)

static void guest_walk(guest_data *self, uint64_t gpa, uint64_t nr,
		       uint64_t expect, uint64_t write)
{
	agent_order(self->agent, gpa, nr, expect, write);
	agent_run(self->vcpu, self->agent);
}

static int set_attributes(struct kvm_vm *vm, uint64_t gpa, uint64_t size, uint64_t attributes)
{
	struct kvm_memory_attributes attr = {
		.address = gpa,
		.size = size,
		.attributes = attributes,
	};

	return __vm_ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &attr);
}

/* The file, not the attributes, says what is private; the two live side by side. */
TEST_F(guest, attributes)
{
	const uint64_t private = KVM_MEMORY_ATTRIBUTE_PRIVATE;
	const uint64_t other_gpa = PRIVATE_GPA - GUEST_SIZE;
	const uint64_t all = GUEST_SIZE / PAGE_SIZE, last = all - 1;
	const struct {
		int64_t first;		/* pages, not units: attributes know no others */
		uint64_t nr;
	} bad[] = {
		{ 0, 1 }, { last, 1 }, { 0, all }, { 3, 7 }, { -1, 2 }, { -all, all + 1 },
		{ -all, 3 * all }, { last, 2 }, { last, last + 1000 },
	};
	uint64_t *other = map_shared_half(GUEST_SIZE);
	int i, on, r, memfd;

	if (!kvm_has_cap(KVM_CAP_GUEST_MEMFD) ||
	    !(kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES) & private))
		SKIP(return, "There is no guest_memfd");

	/* Set before the slot comes, for its pages and those around it. */
	r = set_attributes(self->vm, PRIVATE_GPA, GUEST_SIZE, private);
	TEST_ASSERT(!r, "KVM_SET_MEMORY_ATTRIBUTES failed: %s", strerror(errno));

	memfd = vm_create_guest_memfd(self->vm, GUEST_SIZE, 0);
	vm_set_user_memory_region2(self->vm, PRIVATE_SLOT + 1, KVM_MEM_GUEST_MEMFD, other_gpa,
				   GUEST_SIZE, other, memfd, 0);
	vm_add_private(self->vm, PRIVATE_SLOT, PRIVATE_GPA, GUEST_SIZE, self->hva, self->fd, 0);

	/* The file is empty: all is shared. */
	guest_walk(self, PRIVATE_GPA, GUEST_PAGES, 0x5ed, 0x5ee);
	TEST_ASSERT_EQ(self->hva[0], 0x5ee);
	memfd_to_private(self->fd, 0, GUEST_SIZE);
	guest_walk(self, PRIVATE_GPA, GUEST_PAGES, 0, 0x9);
	guest_walk(self, other_gpa, GUEST_PAGES, 0, 0x77);
	TEST_ASSERT_EQ(other[0], 0x77);

	for (on = 0; on < 2; on++) {
		for (i = 0; i < ARRAY_SIZE(bad); i++) {
			r = set_attributes(self->vm, PRIVATE_GPA + bad[i].first * PAGE_SIZE,
					   bad[i].nr * PAGE_SIZE, on ? private : 0);
			TEST_ASSERT(r == -1 && errno == EINVAL,
				    "Attributes of %lu pages from %ld: wanted EINVAL, got %d (%s)",
				    bad[i].nr, bad[i].first, r, strerror(errno));
		}
		/* Neither these pages nor those of the other slot have changed. */
		guest_walk(self, PRIVATE_GPA, GUEST_PAGES, 0x9, AGENT_NOTHING);
		guest_walk(self, other_gpa, GUEST_PAGES, on ? 0x88 : 0x77, 0x88);
		TEST_ASSERT_EQ(other[0], 0x88);
	}

	/* The other kind of private memory works as ever, and so does this. */
	r = set_attributes(self->vm, other_gpa, GUEST_SIZE, private);
	TEST_ASSERT(!r, "KVM_SET_MEMORY_ATTRIBUTES failed: %s", strerror(errno));
	guest_walk(self, other_gpa, GUEST_PAGES, 0, 0x99);
	TEST_ASSERT_EQ(other[0], 0x88);
	memfd_to_shared(self->fd, 0, GUEST_SIZE / 2);
	guest_walk(self, PRIVATE_GPA, GUEST_PAGES / 2, 0x5ee, 0x10);
	guest_walk(self, PRIVATE_GPA + GUEST_SIZE / 2, GUEST_PAGES / 2, 0x9, AGENT_NOTHING);
	guest_walk(self, other_gpa, GUEST_PAGES, 0x99, AGENT_NOTHING);
	r = set_attributes(self->vm, other_gpa, GUEST_SIZE, 0);
	TEST_ASSERT(!r, "KVM_SET_MEMORY_ATTRIBUTES failed: %s", strerror(errno));
	guest_walk(self, other_gpa, GUEST_PAGES, 0x88, AGENT_NOTHING);

	/* The slot is gone: so is the restriction. */
	vm_delete_private(self->vm, PRIVATE_SLOT);
	r = set_attributes(self->vm, PRIVATE_GPA - GUEST_SIZE, 3 * GUEST_SIZE, 0);
	TEST_ASSERT(!r, "KVM_SET_MEMORY_ATTRIBUTES failed: %s", strerror(errno));
	close(memfd);
}

/* What a slot that failed to change does: what it did. */
TEST_F(guest, failed_changes)
{
	struct kvm_vm *vm = self->vm;
	int i, r;

	vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, GUEST_SIZE, self->hva, self->fd, 0);
	memfd_to_private(self->fd, 0, GUEST_SIZE / 2);
	guest_walk(self, PRIVATE_GPA, GUEST_PAGES / 2, 0, 0x9);

	for (i = 0; i < 4; i++) {
		if (i == 0)
			r = __vm_set_user_memory_region2(vm, PRIVATE_SLOT, 0, PRIVATE_GPA,
							 GUEST_SIZE, self->hva, 0, 0);
		if (i == 1)
			r = __vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA + GUEST_SIZE,
					     GUEST_SIZE, self->hva, self->fd, 0);
		if (i == 2)
			r = __vm_set_user_memory_region(vm, PRIVATE_SLOT, KVM_MEM_LOG_DIRTY_PAGES,
							PRIVATE_GPA, GUEST_SIZE, self->hva);
		if (i == 3)
			r = __vm_set_user_memory_region(vm, PRIVATE_SLOT, 0, PRIVATE_GPA,
							GUEST_SIZE, self->hva);
		TEST_ASSERT(r == -1 && errno == EINVAL, "Change %d: wanted EINVAL, got %d (%s)",
			    i, r, strerror(errno));
		guest_walk(self, PRIVATE_GPA, GUEST_PAGES / 2, 0x9, AGENT_NOTHING);
		guest_walk(self, PRIVATE_GPA + GUEST_SIZE / 2, GUEST_PAGES / 2, 0x5ed,
			   AGENT_NOTHING);
		TEST_ASSERT_EQ(nr_private_mapped(vm), GUEST_PAGES / 2);
	}

	/* Content stays with the file, whoever the slot. */
	vm_delete_private(vm, PRIVATE_SLOT);
	TEST_ASSERT_EQ(get_vm_stat(vm, "private_pages"), 0);
	vm_add_private(vm, PRIVATE_SLOT + 1, PRIVATE_GPA - GUEST_SIZE, GUEST_SIZE, self->hva,
		       self->fd, 0);
	guest_walk(self, PRIVATE_GPA - GUEST_SIZE, GUEST_PAGES / 2, 0x9, AGENT_NOTHING);
}

/* Offsets that don't fit into 32 bits, in bytes and in pages. */
TEST_F_TIMEOUT(guest, huge_offsets, TIMEOUT)
{
	const uint64_t offsets[] = { (1ull << 62) - GUEST_SIZE, 1ull << 32, 1ull << 44, 0 };
	/* All of it stays allocated. */
	const uint64_t nr = nr_units(ARRAY_SIZE(offsets), ARRAY_SIZE(offsets), 2);
	int fd = private_memfd(1ull << 62);
	uint64_t i;

	for (i = 0; i < nr; i++) {
		vm_add_private(self->vm, PRIVATE_SLOT, PRIVATE_GPA, GUEST_SIZE, self->hva,
			       fd, offsets[i]);
		guest_walk(self, PRIVATE_GPA, GUEST_PAGES, 0x5ed, AGENT_NOTHING);
		memfd_to_private(fd, offsets[i], GUEST_SIZE);
		guest_walk(self, PRIVATE_GPA, GUEST_PAGES, 0, 0x100 + i);
		vm_delete_private(self->vm, PRIVATE_SLOT);
	}
	TEST_ASSERT_EQ(memfd_nr_private(fd), nr * GUEST_PAGES);
	for (i = 0; i < nr; i++) {
		vm_add_private(self->vm, PRIVATE_SLOT, PRIVATE_GPA, GUEST_SIZE, self->hva,
			       fd, offsets[i]);
		guest_walk(self, PRIVATE_GPA, GUEST_PAGES, 0x100 + i, AGENT_NOTHING);
		vm_delete_private(self->vm, PRIVATE_SLOT);
	}
	TEST_ASSERT_EQ(self->hva[0], 0x5ed);
	close(fd);
}

/* Hundreds of slots of one file. */
TEST_F_TIMEOUT(guest, many_slots, TIMEOUT)
{
	const uint64_t nr = min_t(uint64_t, kvm_check_cap(KVM_CAP_NR_MEMSLOTS) - 1,
				  nr_units(400, 100, 4));
	int fd = private_memfd(nr * UNIT);
	void *hva = map_shared_half(nr * UNIT);
	uint64_t i;

	virt_map_private(self->vm, 2 * PRIVATE_GPA, nr * UNIT);
	for (i = 0; i < nr; i++)
		vm_add_private(self->vm, i + 1, 2 * PRIVATE_GPA + i * UNIT, UNIT,
			       hva + i * UNIT, fd, (nr - i - 1) * UNIT);
	guest_walk(self, 2 * PRIVATE_GPA, nr, 0, 0x5ed);
	memfd_to_private(fd, 0, nr * UNIT);
	guest_walk(self, 2 * PRIVATE_GPA, nr, 0, 0x9);
	memfd_to_shared(fd, nr / 2 * UNIT, UNIT);
	guest_walk(self, 2 * PRIVATE_GPA, nr - nr / 2 - 1, 0x9, AGENT_NOTHING);
	guest_walk(self, 2 * PRIVATE_GPA + (nr - nr / 2 - 1) * UNIT, 1, 0x5ed, AGENT_NOTHING);
	guest_walk(self, 2 * PRIVATE_GPA + (nr - nr / 2) * UNIT, nr / 2, 0x9, AGENT_NOTHING);
	for (i = 0; i < nr; i += 2)
		vm_delete_private(self->vm, i + 1);
	memfd_to_shared(fd, 0, nr * UNIT);
	for (i = 1; i < nr; i += 2)
		guest_walk(self, 2 * PRIVATE_GPA + i * UNIT, 1, 0x5ed, AGENT_NOTHING);
	TEST_ASSERT_EQ(get_vm_stat(self->vm, "private_pages"), 0);
	close(fd);
}

int main(int argc, char *argv[])
{
	require_private_mem();
	return test_harness_run(argc, argv);
}
