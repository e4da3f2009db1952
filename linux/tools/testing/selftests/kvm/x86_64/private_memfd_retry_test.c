// SPDX-License-Identifier: GPL-2.0
/*
 * A fault that is under way while its page is converted.  The page was shared
 * when KVM asked; then the fault is held up by a userfaultfd in the shared half,
 * and goes on after all of the conversion, start and end, is over.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "private_memfd.h"

#define NR_PAGES	8
#define SIZE		(NR_PAGES * PAGE_SIZE)
#define ALIAS		0x5a5a5a5a5a5a5a5aull

static void guest_code(void)
{
	int i;

	for (i = 0; i < NR_PAGES; i++)
		GUEST_SYNC(READ_ONCE(*(uint64_t *)(PRIVATE_GPA + i * PAGE_SIZE)));
}

static void *vcpu_thread(void *vcpu)
{
	vcpu_run(vcpu);
	return NULL;
}

int main(int argc, char *argv[])
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int fd, uffd, i;
	void *hva;

	require_private_mem();
	hva = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(hva != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	uffd = uffd_open(hva, SIZE);
	__TEST_REQUIRE(uffd >= 0, "There is no userfaultfd");
	ksft_print_header();
	ksft_set_plan(1);

	vm = vm_create_private(1, guest_code, &vcpu);
	fd = private_memfd(SIZE);
	vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, hva, fd, 0);
	virt_map(vm, PRIVATE_GPA, PRIVATE_GPA, NR_PAGES);

	for (i = 0; i < NR_PAGES; i++) {
		void *page = hva + i * PAGE_SIZE;
		/* Every other page stays shared, to see that the way is the right one. */
		bool convert = i % 2;
		pthread_t thread;
		struct ucall uc;

		pthread_create(&thread, NULL, vcpu_thread, vcpu);
		TEST_ASSERT_EQ(uffd_wait(uffd), page);
		if (convert)
			memfd_to_private(fd, i * PAGE_SIZE, PAGE_SIZE);
		uffd_fill(uffd, page, ALIAS);
		pthread_join(thread, NULL);

		TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
		TEST_ASSERT(uc.args[1] == (convert ? 0 : ALIAS),
			    "The guest finds %#lx in a page that is %s", uc.args[1],
			    convert ? "private by now" : "shared");
		TEST_ASSERT_EQ(READ_ONCE(*(uint64_t *)page), ALIAS);
	}
	TEST_ASSERT_EQ(get_vm_stat(vm, "private_pages"), NR_PAGES / 2);
	ksft_test_result_pass("a fault that began before the end of a conversion is retried\n");

	kvm_vm_free(vm);
	close(fd);
	close(uffd);
	ksft_finished();
}
