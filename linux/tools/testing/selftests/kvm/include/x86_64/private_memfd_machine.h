/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For tests of what becomes of KVM_MEM_PRIVATE slots when everything around
 * them ends or is short: a VM that is made in no time, a process that converts
 * its memory, passing files between processes.
 */
#ifndef SELFTEST_KVM_PRIVATE_MEMFD_MACHINE_H
#define SELFTEST_KVM_PRIVATE_MEMFD_MACHINE_H

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "private_memfd.h"

#define MACHINE_SIZE		max_t(uint64_t, SZ_8M, UNIT)
#define CODE_PROGRESS	0x800

/*
 * A guest that takes no time to set up: no page tables, segments without
 * limits.  It counts in pages of the private slot, which is where ds starts,
 * and in a word of the ordinary one.
 */
asm(".pushsection .rodata\n"
	".code16\n"
	"asm_counter_start:\n"
	"1:	addr32 incl 0x000000\n"
	"	addr32 incl 0x001000\n"
	"	addr32 incl 0x1ff000\n"
	"	addr32 incl 0x200000\n"
	"	addr32 incl 0x3ff000\n"
	"	addr32 incl 0x7ff000\n"
	"	addr32 incl %cs:0x800\n"
	"	jmp 1b\n"
	"asm_counter_end:\n"
	".code64\n"
	".popsection\n");

struct machine {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	size_t run_size;
	void *code;
	void *hva;
	int fd;
	pthread_t thread;
	bool stop;
};

static inline void machine_create(struct machine *m)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = {
		.rflags = X86_EFLAGS_FIXED,
	};

	m->stop = false;
	m->vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	m->code = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(m->code != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	memcpy(m->code, LABEL(counter_start), LABEL(counter_end) - LABEL(counter_start));
	vm_set_user_memory_region(m->vm, 0, 0, 0, PAGE_SIZE, m->code);

	m->vcpu = __vm_vcpu_add(m->vm, 0);
	m->run_size = ioctl(m->vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
	vcpu_sregs_get(m->vcpu, &sregs);
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	sregs.cs.limit = -1;
	sregs.cs.g = 1;
	sregs.ds = sregs.cs;
	sregs.ds.type = 3;
	sregs.ds.base = SZ_256M;
	vcpu_sregs_set(m->vcpu, &sregs);
	vcpu_regs_set(m->vcpu, &regs);
}

static inline int machine_bind(struct machine *m)
{
	int r = __vm_add_private(m->vm, PRIVATE_SLOT, SZ_256M, MACHINE_SIZE, m->hva, m->fd, 0);

	return r ? errno : 0;
}

static inline void machine_must_bind(struct machine *m)
{
	int r = machine_bind(m);

	TEST_ASSERT(!r, "Binding failed: %s", strerror(r));
}

/*
 * Until it is told to stop, or the vCPU is closed under it.  Without the slot it
 * is MMIO; if the slot comes or goes just then, KVM may take it for a hole.
 */
static inline void *machine_thread(void *arg)
{
	struct machine *m = arg;

	while (!READ_ONCE(m->stop)) {
		if (!__vcpu_run(m->vcpu)) {
			TEST_ASSERT_KVM_EXIT_REASON(m->vcpu, KVM_EXIT_MMIO);
			continue;
		}
		if (errno == EBADF)
			break;
		if (errno == EFAULT && m->vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
		    m->vcpu->run->memory_fault.gpa - SZ_256M < MACHINE_SIZE)
			continue;
		TEST_ASSERT(errno == EINTR, "KVM_RUN failed: %s, exit %s", strerror(errno),
			    exit_reason_str(m->vcpu->run->exit_reason));
	}
	return NULL;
}

static inline void ignore(int signal)
{
}

static inline void machine_start(struct machine *m)
{
	signal(SIGUSR1, ignore);
	pthread_create(&m->thread, NULL, machine_thread, m);
}

static inline void machine_stop(struct machine *m)
{
	WRITE_ONCE(m->stop, true);
	m->vcpu->run->immediate_exit = 1;
	pthread_kill(m->thread, SIGUSR1);
	pthread_join(m->thread, NULL);
	m->vcpu->run->immediate_exit = 0;
}

/* Memory that is shared with the vCPU keeps it alive as the fd does. */
static inline void machine_unmap_vcpu(struct machine *m)
{
	munmap(m->vcpu->run, m->run_size);
}

/* The guest goes round once more, from start to end. */
static inline void machine_wait(struct machine *m)
{
	uint32_t *progress = m->code + CODE_PROGRESS;
	uint32_t start = READ_ONCE(*progress);
	int tries = 0;

	while (READ_ONCE(*progress) - start < 2) {
		TEST_ASSERT(tries++ < 100000, "The guest makes no progress");
		usleep(100);
	}
}

/* Converts back and forth, large and small, until it is killed, as its parent is. */
static inline void converter(int fd)
{
	for (;;) {
		uint64_t nr = MACHINE_SIZE / UNIT, first;

		if (random() % 4) {
			first = random() % nr;
			nr = random() % 2 ? 1 : 1 + random() % (nr - first);
		} else {
			first = 0;
		}
		if (fallocate(fd, FALLOC_FL_KEEP_SIZE |
			      (random() % 2 ? FALLOC_FL_PUNCH_HOLE : 0),
			      first * UNIT, nr * UNIT) && errno != EINTR)
			_exit(errno);
		/* Others need the CPU, too. */
		if (random() % 4 == 0)
			usleep(random() % 500);
	}
}

static inline pid_t converter_start(int fd)
{
	pid_t pid = fork();

	TEST_ASSERT(pid >= 0, "fork() failed: %s", strerror(errno));
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		converter(fd);
	}
	return pid;
}

/* It must still be at work. */
static inline void converter_stop(pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	TEST_ASSERT(waitpid(pid, &status, 0) == pid, "waitpid() failed: %s", strerror(errno));
	TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
		    "The conversions ended with status %#x", status);
}

/* All that the group has, of any kind. */
static inline long cgroup_all(void)
{
	return read_key(MEMORY_STAT, "anon") + read_key(MEMORY_STAT, "shmem") +
	       max(0l, read_number(HUGETLB_2M)) + max(0l, read_number(HUGETLB_1G));
}

/* @size more than @before, give or take what a process needs. */
static inline void assert_cgroup_all(long before, long size, const char *when)
{
	const long slack = SZ_1M;
	int tries;

	for (tries = 0; tries < 500 && labs(cgroup_all() - before - size) > slack; tries++)
		usleep(10000);
	TEST_ASSERT(labs(cgroup_all() - before - size) <= slack,
		    "%s: %ld kB, there should be %ld kB", when,
		    (cgroup_all() - before) / (long)SZ_1K, size / (long)SZ_1K);
}

/* Whoever reads from the socket gets the file.  Until then the message has it. */
static inline void send_fd(int to, int fd)
{
	char control[CMSG_SPACE(sizeof(fd))] = {};
	struct iovec iov = { "", 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	TEST_ASSERT(sendmsg(to, &msg, 0) == 1, "sendmsg() failed: %s", strerror(errno));
}

static inline int receive_fd(int from)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	int fd;

	TEST_ASSERT(recvmsg(from, &msg, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&msg),
		    "recvmsg() failed: %s", strerror(errno));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
	return fd;
}

#endif /* SELFTEST_KVM_PRIVATE_MEMFD_MACHINE_H */
