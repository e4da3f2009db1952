// SPDX-License-Identifier: GPL-2.0
/*
 * Users of inaccessible memfds who mean harm, or are not trusted with more than
 * they need: without privileges and within limits, with a file that somebody
 * else has passed to them, under a seccomp filter, and asking for more of
 * everything until there is no more.  What they get is what the documentation
 * says, what they take is accounted, and others go on undisturbed.
 */
#include <linux/audit.h>
#include <linux/bpf_common.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <time.h>

#include "private_memfd_machine.h"

#define SIZE		MACHINE_SIZE

/* Two users with no privileges. */
#define VMM_UID		65534
#define OTHER_UID	65533

/* A killed process must be gone after so many seconds. */
#define KILL_SECONDS	20

FIXTURE(hostile) {
	struct counters before;
	mode_t kvm_mode;
};

#define hostile_data FIXTURE_DATA(hostile)

/* Everybody may use KVM, as where udev says so. */
FIXTURE_SETUP(hostile)
{
	struct stat st;

	TEST_ASSERT(!stat(KVM_DEV_PATH, &st) && !chmod(KVM_DEV_PATH, 0666), KVM_DEV_PATH ": %s",
		    strerror(errno));
	self->kvm_mode = st.st_mode & 0777;
	read_counters(&self->before);
}

FIXTURE_TEARDOWN(hostile)
{
	chmod(KVM_DEV_PATH, self->kvm_mode);
}

/* --- processes --- */

static pid_t start(void (*run)(void *arg), void *arg)
{
	pid_t pid = fork();

	TEST_ASSERT(pid >= 0, "fork() failed: %s", strerror(errno));
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		run(arg);
		exit(0);
	}
	return pid;
}

static int wait_for(pid_t pid)
{
	int status;

	TEST_ASSERT(waitpid(pid, &status, 0) == pid, "waitpid() failed: %s", strerror(errno));
	return status;
}

static void assert_good_end(pid_t pid, const char *who)
{
	int status = wait_for(pid);

	TEST_ASSERT(!status, "%s: status %#x", who, status);
}

/* It is killed, and gone in no time. */
static void kill_now(pid_t pid, const char *who)
{
	uint64_t begin = now_ms(), ms;
	int status;

	kill(pid, SIGKILL);
	status = wait_for(pid);
	ms = now_ms() - begin;
	TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "%s: status %#x", who,
		    status);
	TEST_ASSERT(ms < KILL_SECONDS * 1000, "%s: gone after %lu ms only", who, ms);
	pr_info("# %s: gone %lu ms after SIGKILL\n", who, ms);
}

/* One byte from one process to another. */
static void tell(int fd)
{
	TEST_ASSERT(write(fd, "", 1) == 1, "write() failed: %s", strerror(errno));
}

static void wait_to_be_told(int fd)
{
	char byte;

	TEST_ASSERT(read(fd, &byte, 1) == 1, "The other process has failed");
}

static void become(uid_t uid)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[2];

	TEST_ASSERT(!setgroups(0, NULL) && !setresgid(uid, uid, uid) && !setresuid(uid, uid, uid) &&
		    !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_DUMPABLE, 1) &&
		    !prctl(PR_SET_PDEATHSIG, SIGKILL), "Not to be done: %s", strerror(errno));
	TEST_ASSERT(!syscall(SYS_capget, &header, caps), "capget() failed: %s", strerror(errno));
	TEST_ASSERT(!caps[0].permitted && !caps[1].permitted, "Capabilities are left: %#x %#x",
		    caps[0].permitted, caps[1].permitted);
}

static void limit(int resource, rlim_t value)
{
	const struct rlimit rlim = { value, value };

	TEST_ASSERT(!setrlimit(resource, &rlim), "setrlimit() failed: %s", strerror(errno));
}

#define assert_fails(call, error)						\
do {										\
	long __r = (long)(call);						\
	int __error = error;							\
										\
	TEST_ASSERT(__r == -1 && errno == __error,				\
		    #call ": wanted %s, got %ld (%s)", strerror(__error), __r,	\
		    __r == -1 ? strerror(errno) : "success");			\
} while (0)

static int punch(int fd, off_t offset, off_t len)
{
	return fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, len);
}

static int reopen(pid_t pid, int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
	return open(path, flags | O_CLOEXEC);
}

/* A machine that has run on private memory. */
static void machine_set_up(struct machine *m)
{
	m->fd = private_memfd(SIZE);
	m->hva = map_shared_half(SIZE);
	memfd_to_private(m->fd, 0, SIZE);
	machine_create(m);
	machine_must_bind(m);
	machine_start(m);
	machine_wait(m);
	TEST_ASSERT(get_vm_stat(m->vm, "private_pages") >= 6, "The pages are not mapped");
}

/* --- no privileges, little of everything --- */

static void run_unprivileged(void *arg)
{
	struct machine m = {};
	int fd, nr;

	limit(RLIMIT_MEMLOCK, 0);
	limit(RLIMIT_NOFILE, 32);
	limit(RLIMIT_FSIZE, SIZE);
	signal(SIGXFSZ, SIG_IGN);
	become(VMM_UID);

	/* A file's size is limited, when it is set. */
	fd = memfd_create("private", MFD_INACCESSIBLE | private_backing()->memfd_flags);
	TEST_ASSERT(fd >= 0, "memfd_create() failed: %s", strerror(errno));
	assert_fails(ftruncate(fd, SIZE + UNIT), EFBIG);
	close(fd);

	machine_set_up(&m);
	memfd_to_shared(m.fd, 0, UNIT);
	machine_wait(&m);

	/* To allocate doesn't change the size. */
	limit(RLIMIT_FSIZE, 0);
	memfd_to_private(m.fd, 0, UNIT);
	machine_wait(&m);

	/* What needs no descriptor goes on when there is none left. */
	for (nr = 0; memfd_create("private", MFD_INACCESSIBLE) >= 0; nr++)
		TEST_ASSERT(nr < 32, "More files than RLIMIT_NOFILE says");
	TEST_ASSERT_EQ(errno, EMFILE);
	assert_fails(ioctl(m.vm->kvm_fd, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM), EMFILE);
	memfd_to_shared(m.fd, 0, SIZE);
	memfd_to_private(m.fd, 0, SIZE);
	machine_wait(&m);
	machine_stop(&m);
}

TEST_F_TIMEOUT(hostile, unprivileged, TIMEOUT)
{
	assert_good_end(start(run_unprivileged, NULL), "A user without privileges");
	assert_counters(&self->before, "A user without privileges");
}

/* --- a file that was passed on --- */

struct passing {
	int socket[2];
	pid_t vmm;
	int vmm_fd;	/* number of the file's descriptor there */
};

/* Sends a read-only descriptor and one for all. */
static void run_passing(void *arg)
{
	struct passing *p = arg;
	struct machine m = {};
	int ro;

	close(p->socket[1]);
	become(VMM_UID);
	machine_set_up(&m);
	ro = reopen(getpid(), m.fd, O_RDONLY);
	TEST_ASSERT(ro >= 0, "Can't open the file anew: %s", strerror(errno));
	TEST_ASSERT(write(p->socket[0], &m.fd, sizeof(m.fd)) == sizeof(m.fd), "write() failed");
	send_fd(p->socket[0], ro);
	send_fd(p->socket[0], m.fd);

	/* They have tried everything, and converted a page back and forth. */
	wait_to_be_told(p->socket[0]);
	TEST_ASSERT_EQ(memfd_nr_private(m.fd), SIZE / UNIT);
	machine_wait(&m);

	/* Now nobody else can open it. */
	TEST_ASSERT(!fchmod(m.fd, 0600), "fchmod() failed: %s", strerror(errno));
	tell(p->socket[0]);
	wait_to_be_told(p->socket[0]);
	machine_wait(&m);
	machine_stop(&m);
}

static void assert_no_content(int fd)
{
	char byte = 'x';

	TEST_ASSERT(pread(fd, &byte, 1, 0) == -1, "Content can be read");
	TEST_ASSERT_EQ(byte, 'x');
	assert_fails(mmap(NULL, UNIT, PROT_READ, MAP_SHARED, fd, 0), EPERM);
	assert_fails(mmap(NULL, UNIT, PROT_READ, MAP_PRIVATE, fd, 0), EPERM);
}

static void assert_not_the_owner(int fd)
{
	assert_no_content(fd);
	assert_fails(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EPERM);
	assert_fails(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), EPERM);
	assert_fails(fchmod(fd, 0777), EPERM);
	assert_fails(fchown(fd, OTHER_UID, OTHER_UID), EPERM);
	TEST_ASSERT(fcntl(fd, F_GET_SEALS) & F_SEAL_INACCESSIBLE, "The seal is gone");
	TEST_ASSERT_EQ(memfd_nr_private(fd), SIZE / UNIT);
	TEST_ASSERT(memfd_is_private(fd, SIZE - UNIT), "lseek() says something else");
}

static void assert_bind_fails(struct machine *m, int fd, int error)
{
	int r;

	m->fd = fd;
	r = machine_bind(m);
	TEST_ASSERT(r == error, "Binding: wanted %s, got %s", strerror(error), strerror(r));
}

/* The way to the descriptors and the memory of another user's process. */
static void assert_no_way_to(pid_t pid, int fd)
{
	char byte, path[64];
	struct iovec local = { &byte, 1 }, remote = { (void *)start, 1 };
	int pidfd = syscall(SYS_pidfd_open, pid, 0);

	TEST_ASSERT(pidfd >= 0, "pidfd_open() failed: %s", strerror(errno));
	assert_fails(syscall(SYS_pidfd_getfd, pidfd, fd, 0), EPERM);
	assert_fails(reopen(pid, fd, O_RDONLY), EACCES);
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	assert_fails(open(path, O_RDONLY), EACCES);
	assert_fails(process_vm_readv(pid, &local, 1, &remote, 1, 0), EPERM);
	close(pidfd);
}

static void run_passed_to(void *arg)
{
	struct machine m = { .hva = map_shared_half(SIZE) };
	struct passing *p = arg;
	int ro, rw, fd;

	close(p->socket[0]);
	become(OTHER_UID);
	TEST_ASSERT(read(p->socket[1], &p->vmm_fd, sizeof(int)) == sizeof(int), "read() failed");
	ro = receive_fd(p->socket[1]);
	rw = receive_fd(p->socket[1]);
	machine_create(&m);

	assert_not_the_owner(ro);
	assert_fails(fallocate(ro, FALLOC_FL_KEEP_SIZE, 0, UNIT), EBADF);
	assert_fails(punch(ro, 0, UNIT), EBADF);
	assert_fails(ftruncate(ro, 0), EINVAL);
	assert_bind_fails(&m, ro, EBADF);

	assert_not_the_owner(rw);
	assert_fails(pwrite(rw, "", 1, 0), EPERM);
	assert_fails(ftruncate(rw, 0), EPERM);
	assert_bind_fails(&m, rw, EBUSY);

	/* What they may: convert. */
	memfd_to_shared(rw, 0, UNIT);
	memfd_to_private(rw, 0, UNIT);

	/* A file is open to all, as any memfd, so a read-only descriptor keeps nobody out... */
	fd = reopen(getpid(), ro, O_RDWR);
	TEST_ASSERT(fd >= 0, "Can't open the file anew: %s", strerror(errno));
	assert_not_the_owner(fd);
	assert_bind_fails(&m, fd, EBUSY);
	close(fd);
	assert_no_way_to(p->vmm, p->vmm_fd);

	/* ... until its owner says otherwise. */
	tell(p->socket[1]);
	wait_to_be_told(p->socket[1]);
	assert_fails(reopen(getpid(), ro, O_RDWR), EACCES);
	assert_fails(reopen(getpid(), ro, O_RDONLY), EACCES);
	assert_fails(reopen(getpid(), rw, O_RDWR), EACCES);
	assert_not_the_owner(ro);
	assert_not_the_owner(rw);
	assert_bind_fails(&m, rw, EBUSY);
	tell(p->socket[1]);
}

TEST_F_TIMEOUT(hostile, passed_on, TIMEOUT)
{
	struct passing p;
	pid_t other;

	TEST_ASSERT(!socketpair(AF_UNIX, SOCK_STREAM, 0, p.socket), "socketpair() failed: %s",
		    strerror(errno));
	p.vmm = start(run_passing, &p);
	other = start(run_passed_to, &p);
	close(p.socket[0]);
	close(p.socket[1]);
	assert_good_end(other, "Who was passed the file");
	assert_good_end(p.vmm, "Who has passed it on");
	assert_counters(&self->before, "A file that was passed on");
}

/* --- a VMM under seccomp --- */

/* As linux/filter.h has them, which is another one in tools/include. */
struct sock_filter {
	__u16 code;
	__u8 jt, jf;
	__u32 k;
};

struct sock_fprog {
	unsigned short len;
	struct sock_filter *filter;
};

#define LOAD(member)	{ BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, member) }
#define RETURN(what)	{ BPF_RET | BPF_K, 0, 0, SECCOMP_RET_##what }
/* Whether the next instruction is skipped. */
#define UNLESS(op, k)	{ BPF_JMP | BPF_##op | BPF_K, 1, 0, k }
#define IF(op, k)	{ BPF_JMP | BPF_##op | BPF_K, 0, 1, k }

/* All that it takes to run a guest on private memory, once the files are open. */
static void confine(void)
{
	struct sock_filter code[] = {
		LOAD(arch),
		UNLESS(JEQ, AUDIT_ARCH_X86_64),
		RETURN(KILL_PROCESS),
		LOAD(nr),
		IF(JEQ, __NR_read), RETURN(ALLOW),
		IF(JEQ, __NR_write), RETURN(ALLOW),
		IF(JEQ, __NR_ioctl), RETURN(ALLOW),
		IF(JEQ, __NR_fallocate), RETURN(ALLOW),
		IF(JEQ, __NR_exit_group), RETURN(ALLOW),
		UNLESS(JEQ, __NR_mmap),
		RETURN(KILL_PROCESS),
		/* No file. */
		LOAD(args[3]),
		UNLESS(JSET, MAP_ANONYMOUS),
		RETURN(KILL_PROCESS),
		RETURN(ALLOW),
	};
	const struct sock_fprog program = { ARRAY_SIZE(code), code };

	TEST_ASSERT(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program),
		    "There is no seccomp: %s", strerror(errno));
}

/* Converts each page to private, every other one back again. */
static void converting_code(uint64_t unit, uint64_t nr)
{
	uint64_t i;

	for (i = 0; i < nr; i++) {
		uint64_t gpa = PRIVATE_GPA + i * unit;
		uint64_t *word = (void *)gpa;

		WRITE_ONCE(*word, 0x5ed + i);
		kvm_hypercall_map_gpa_range(gpa, unit, KVM_MAP_GPA_RANGE_ENCRYPTED);
		GUEST_ASSERT_EQ(READ_ONCE(*word), 0ul);
		WRITE_ONCE(*word, 0xdead);
		GUEST_ASSERT_EQ(READ_ONCE(*word), 0xdeadul);
		if (i % 2)
			continue;
		kvm_hypercall_map_gpa_range(gpa, unit, KVM_MAP_GPA_RANGE_DECRYPTED);
		GUEST_ASSERT_EQ(READ_ONCE(*word), 0x5ed + i);
	}
	GUEST_DONE();
}

struct confined {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	uint64_t nr;
	int fd;
	int done;		/* pipe */
	long forbidden;		/* the number of a system call to end with */
};

static void confined_bind(struct confined *c)
{
	void *hva = mmap(NULL, c->nr * UNIT, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	TEST_ASSERT(hva != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	TEST_ASSERT(!__vm_fd_add_private(c->vm->fd, PRIVATE_SLOT, PRIVATE_GPA, c->nr * UNIT, hva,
					 c->fd),
		    "Binding failed: %s", strerror(errno));
}

static void confined_run(struct confined *c)
{
	struct kvm_run *run = c->vcpu->run;
	struct ucall uc;

	for (;;) {
		vcpu_run(c->vcpu);
		if (run->exit_reason == KVM_EXIT_HYPERCALL) {
			off_t offset = run->hypercall.args[0] - PRIVATE_GPA;
			off_t len = run->hypercall.args[1] * PAGE_SIZE;

			if (run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED)
				memfd_to_private(c->fd, offset, len);
			else
				memfd_to_shared(c->fd, offset, len);
			run->hypercall.ret = 0;
			continue;
		}
		if (get_ucall(c->vcpu, &uc) == UCALL_ABORT)
			REPORT_GUEST_ASSERT(uc);
		TEST_ASSERT_EQ(uc.cmd, UCALL_DONE);
		return;
	}
}

static void run_confined(void *arg)
{
	struct confined *c = arg;

	become(VMM_UID);
	c->vm = vm_create_private(1, converting_code, &c->vcpu);
	vm_enable_cap(c->vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));
	virt_map_private(c->vm, PRIVATE_GPA, c->nr * UNIT);
	vcpu_args_set(c->vcpu, 2, UNIT, c->nr);
	c->fd = private_memfd(c->nr * UNIT);

	confine();
	confined_bind(c);
	confined_run(c);
	tell(c->done);
	if (c->forbidden)
		syscall(c->forbidden, c->fd, UNIT, PROT_READ, MAP_SHARED, c->fd, 0);
	_exit(0);
}

static int confined_status(long forbidden)
{
	struct confined c = {
		.nr = nr_units(256, 16, 2),
		.forbidden = forbidden,
	};
	int done[2];
	pid_t pid;

	TEST_ASSERT(!pipe(done), "pipe() failed: %s", strerror(errno));
	c.done = done[1];
	pid = start(run_confined, &c);
	close(done[1]);
	wait_to_be_told(done[0]);
	close(done[0]);
	return wait_for(pid);
}

TEST_F_TIMEOUT(hostile, seccomp, TIMEOUT)
{
	static const long forbidden[] = {
		__NR_mmap, __NR_pread64, __NR_memfd_create, __NR_ftruncate, __NR_fcntl,
	};
	int i, status;

	if (!(kvm_check_cap(KVM_CAP_EXIT_HYPERCALL) & BIT(KVM_HC_MAP_GPA_RANGE)))
		SKIP(return, "No exits for hypercalls");

	TEST_ASSERT_EQ(confined_status(0), 0);
	assert_counters(&self->before, "A confined VMM");

	for (i = 0; i < ARRAY_SIZE(forbidden); i++) {
		status = confined_status(forbidden[i]);
		TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS,
			    "System call %ld: status %#x", forbidden[i], status);
		assert_counters(&self->before, "A confined VMM that was killed");
	}
}

/* --- more and more --- */

/* As many files as there can be, a slot for each, and then as many again. */
static void run_files(void *arg)
{
	const unsigned int max_files = 512;
	int *ready = arg, nr = 0, i, fds[512];
	struct kvm_vm *vm;
	char *hva;

	limit(RLIMIT_NOFILE, max_files);
	become(VMM_UID);
	vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	hva = map_no_shared_half(2 * max_files * UNIT);
	while ((fds[nr] = memfd_create("private", MFD_INACCESSIBLE |
				       private_backing()->memfd_flags)) >= 0) {
		TEST_ASSERT(!ftruncate(fds[nr], UNIT), "ftruncate() failed: %s", strerror(errno));
		nr++;
		TEST_ASSERT(nr < max_files, "More files than RLIMIT_NOFILE says");
	}
	TEST_ASSERT_EQ(errno, EMFILE);
	TEST_ASSERT(nr > max_files - 32, "Only %d files", nr);
	if (!backing_is_hugetlb())
		for (i = 0; i < nr; i++)
			memfd_to_private(fds[i], 0, UNIT);

	/* A slot keeps its file, which then counts no more. */
	for (i = 0; i < nr; i++) {
		TEST_ASSERT(!__vm_fd_add_private(vm->fd, i + 1, PRIVATE_GPA + i * UNIT, UNIT,
						 hva + i * UNIT, fds[i]),
			    "Binding failed: %s", strerror(errno));
		close(fds[i]);
	}
	for (i = 0; i < nr; i++)
		fds[i] = private_memfd(UNIT);
	pr_info("# %d files in slots, as many besides\n", nr);
	tell(ready[1]);
	for (;;)
		pause();
}

TEST_F_TIMEOUT(hostile, many_files, TIMEOUT)
{
	int ready[2];
	pid_t pid;

	TEST_ASSERT(!pipe(ready), "pipe() failed: %s", strerror(errno));
	pid = start(run_files, ready);
	close(ready[1]);
	wait_to_be_told(ready[0]);
	kill_now(pid, "A process with too many files");
	assert_counters(&self->before, "Many files");
}

/*
 * Memory of the kernel that is charged to the group, in bytes.  To read how much
 * CPU time it has used brings all of its statistics up to date; memory.stat by
 * itself lags.
 */
static long cgroup_kernel(void)
{
	read_key(CGROUP "/cpu.stat", "usage_usec");
	return read_key(MEMORY_STAT, "kernel");
}

/* What is freed after a grace period is counted until then, and the statistics lag. */
static bool cgroup_kernel_below(long limit)
{
	int tries;

	for (tries = 0; cgroup_kernel() >= limit && tries < 100; tries++)
		usleep(100000);
	return tries < 100;
}

/* The bytes that a slot of one page takes, on average of many. */
static long bytes_per_slot(struct kvm_vm *vm, uint32_t flags, char *hva, int fd, int nr)
{
	long before = cgroup_kernel();
	int i, r;

	for (i = 0; i < nr; i++) {
		r = __vm_set_user_memory_region2(vm, i + 1, flags, PRIVATE_GPA + i * PAGE_SIZE,
						 PAGE_SIZE, hva + i * PAGE_SIZE, fd,
						 flags ? i * PAGE_SIZE : 0);
		TEST_ASSERT(!r, "Slot %d: %s", i, strerror(errno));
	}
	return (cgroup_kernel() - before) / nr;
}

/*
 * KVM's maximum of slots with one file is private_memfd_region_test's.  Here is
 * who pays for them, and that another VM gets none.
 */
TEST_F_TIMEOUT(hostile, many_bindings, TIMEOUT)
{
	const int nr = 2000, others = 1000;
	size_t size = align_up(nr * PAGE_SIZE, UNIT);
	long ordinary, private, before = 0;
	int fd = private_memfd(size), i, r;
	char *hva = map_shared_half(size);
	struct kvm_vm *vm, *plain, *other;

	if (!cgroup_create())
		SKIP(return, "There is no memory controller of cgroup2");
	cgroup_join();

	/* Nothing is freed in between: that would be counted for some time yet. */
	plain = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	ordinary = bytes_per_slot(plain, 0, hva, -1, nr);
	vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	private = bytes_per_slot(vm, KVM_MEM_PRIVATE, hva, fd, nr);
	pr_info("# %ld bytes for a slot, %ld for one with a binding\n", ordinary, private);
	TEST_ASSERT(private - ordinary >= 64, "A binding is not accounted: %ld bytes, %ld with it",
		    ordinary, private);
	TEST_ASSERT(private - ordinary <= 512, "A binding takes %ld bytes", private - ordinary);

	/* Others may try as long as they like. */
	other = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	for (i = -others; i < others; i++) {
		if (!i)
			before = cgroup_kernel();
		r = __vm_add_private(other, 1, PRIVATE_GPA, PAGE_SIZE, hva, fd, 0);
		TEST_ASSERT(r == -1 && errno == EBUSY, "Wanted EBUSY, got %d (%s)", r,
			    r ? strerror(errno) : "success");
	}
	TEST_ASSERT(cgroup_kernel_below(before + others * 64), "Failed binds have taken %ld bytes",
		    cgroup_kernel() - before);
	kvm_vm_free(other);
	kvm_vm_free(vm);
	kvm_vm_free(plain);
	close(fd);
	cgroup_leave();
	cgroup_remove();
	assert_counters(&self->before, "Many bindings");
}

/* A limit for what the files take. */
#define GROUP_LIMIT		max_t(uint64_t, SZ_64M, 2 * UNIT)

/*
 * What the processes without end have in common.  A pipe would take memory, of
 * which there is none left.
 */
struct shortage {
	int fd;			/* of the file that is converted */
	int socket[2];
	unsigned int refused;	/* how often */
	unsigned int converted;	/* there and back, as far as there was memory */
};

/* With all the memory there that this process needs besides. */
static void join_shortage(void)
{
	TEST_ASSERT(!mlockall(MCL_CURRENT), "mlockall() failed: %s", strerror(errno));
	cgroup_join();
}

static int no_memory(void)
{
	return backing_is_hugetlb() ? ENOSPC : ENOMEM;
}

/* Four times what the group may have, and all over again when it has been refused. */
static void run_allocating(void *arg)
{
	uint64_t size = 4 * GROUP_LIMIT;
	struct shortage *s = arg;
	int fd = private_memfd(size), i;

	join_shortage();
	for (i = 1;; i++) {
		assert_fails(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, size), no_memory());
		__sync_fetch_and_add(&s->refused, 1);
		if (i % 16 == 0)
			memfd_to_shared(fd, 0, size);
	}
}

/* As converter(), but that there may be no memory. */
static void run_converting(void *arg)
{
	struct shortage *s = arg;
	int turn = 0;

	join_shortage();
	for (;;) {
		TEST_ASSERT(!punch(s->fd, 0, SIZE) || errno == ENOMEM || errno == EBUSY,
			    "Punching failed: %s", strerror(errno));
		TEST_ASSERT(!fallocate(s->fd, FALLOC_FL_KEEP_SIZE, 0, turn++ % 2 ? SIZE : UNIT) ||
			    errno == no_memory(), "fallocate() failed: %s", strerror(errno));
		__sync_fetch_and_add(&s->converted, 1);
	}
}

/* Whose memory it is that others convert. */
static void run_machine(void *arg)
{
	struct shortage *s = arg;
	struct machine m = {};

	machine_set_up(&m);
	send_fd(s->socket[1], m.fd);
	for (;;)
		machine_wait(&m);
}

TEST_F_TIMEOUT(hostile, no_end, TIMEOUT)
{
	struct shortage *s = map_for_children(PAGE_SIZE);
	unsigned int refused, converted;
	int i, nr = 0;
	char bytes[32];
	pid_t pids[6];

	if (!cgroup_create())
		SKIP(return, "There is no memory controller of cgroup2");
	snprintf(bytes, sizeof(bytes), "%lu", GROUP_LIMIT);
	cgroup_limit(bytes);
	TEST_ASSERT(s != MAP_FAILED && !socketpair(AF_UNIX, SOCK_STREAM, 0, s->socket),
		    "No memory or socket: %s", strerror(errno));

	pids[nr++] = start(run_machine, s);
	close(s->socket[1]);
	s->fd = receive_fd(s->socket[0]);
	for (i = 0; i < 3; i++)
		pids[nr++] = start(run_converting, s);
	for (i = 0; i < 2; i++)
		pids[nr++] = start(run_allocating, s);
	usleep(scaled(2000) * 1000);
	for (i = 0; i < 1000 && (READ_ONCE(s->refused) < 20 || READ_ONCE(s->converted) < 20); i++)
		usleep(20000);

	/* All of them are still at it, the guest, too. */
	TEST_ASSERT_EQ(cgroup_oom_kills(), 0);
	for (i = 0; i < nr; i++)
		TEST_ASSERT(!waitpid(pids[i], NULL, WNOHANG), "Process %d of them has ended", i);
	refused = READ_ONCE(s->refused);
	converted = READ_ONCE(s->converted);
	pr_info("# refused %u times, %u conversions\n", refused, converted);
	TEST_ASSERT(refused >= 20 && converted >= 20, "They make no progress");
	TEST_ASSERT(cgroup_charged() <= (long)GROUP_LIMIT, "%ld bytes in a group that may have %ld",
		    cgroup_charged(), GROUP_LIMIT);

	for (i = nr - 1; i >= 0; i--)
		kill_now(pids[i], i > 3 ? "Who allocates" : i ? "Who converts" : "Who has a guest");
	close(s->fd);
	close(s->socket[0]);
	munmap(s, PAGE_SIZE);
	TEST_ASSERT(cgroup_wait(0), "%ld bytes are left", cgroup_charged());
	cgroup_remove();
	assert_counters(&self->before, "Requests without end");
}

/* Binds until the group has no memory for it. */
static void run_binding(void *arg)
{
	struct kvm_vm *vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	uint64_t size = align_up(30000 * PAGE_SIZE, UNIT), i;
	char *hva = map_no_shared_half(size);
	int fd = private_memfd(size);

	cgroup_join();
	for (i = 0; i < 30000; i++) {
		if (!__vm_add_private(vm, i + 1, PRIVATE_GPA + i * PAGE_SIZE, PAGE_SIZE,
				      hva + i * PAGE_SIZE, fd, i * PAGE_SIZE))
			continue;
		TEST_ASSERT(errno == ENOMEM, "Slot %lu: %s", i, strerror(errno));
		break;
	}
	TEST_ASSERT(i < 30000, "Bindings are not accounted");
}

TEST_F_TIMEOUT(hostile, bindings_at_the_limit, TIMEOUT)
{
	int status;

	if (!cgroup_create())
		SKIP(return, "There is no memory controller of cgroup2");
	write_text(CGROUP "/memory.max", "4M");
	status = wait_for(start(run_binding, NULL));
	pr_info("# status %#x, %ld killed\n", status, cgroup_oom_kills());
	/* A lack of memory of the kernel's is a case for the OOM killer of the group. */
	TEST_ASSERT(!status || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL &&
				cgroup_oom_kills()), "Status %#x", status);
	cgroup_remove();
	assert_counters(&self->before, "Bindings at the limit");
}

/* --- the neighbour --- */

#define STORM_THREADS	3
#define STORM_UNITS	nr_units(16 * PAGES_PER_2M, 16, 1)

struct storm {
	int fd;
	bool idle;		/* not conversions but work of its own */
	uint64_t *conversions;	/* of all threads, for who looks from outside */
};

/* The smallest ranges and the largest one in turns. */
static void *storm_thread(void *arg)
{
	struct storm *storm = arg;
	uint64_t work = 0, turn;

	for (turn = 0; storm->idle; turn++)
		WRITE_ONCE(work, work + turn);
	for (turn = 0;; turn++) {
		uint64_t first = turn % 2 ? turn / 2 * 7919 % STORM_UNITS : 0;
		uint64_t nr = turn % 2 ? 1 : STORM_UNITS;

		memfd_to_private(storm->fd, first * UNIT, nr * UNIT);
		memfd_to_shared(storm->fd, first * UNIT, nr * UNIT);
		__atomic_add_fetch(storm->conversions, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

/* One process, several threads, and a guest that has the file, too. */
static void run_storm(void *arg)
{
	struct machine m = { .hva = map_shared_half(SIZE) };
	struct storm *storm = arg;
	pthread_t thread;
	int i;

	m.fd = storm->fd;
	machine_create(&m);
	machine_must_bind(&m);
	if (!storm->idle)
		machine_start(&m);
	for (i = 0; i < STORM_THREADS; i++)
		pthread_create(&thread, NULL, storm_thread, storm);
	for (;;)
		pause();
}

/*
 * How often the guest goes round in a second. With all of its memory mapped it
 * never has to wait for any; or it has to fault on its last page all the time.
 */
static uint64_t rounds_per_second(struct machine *m, bool faulting)
{
	uint64_t faults = get_vm_stat(m->vm, "private_faults"), begin = now_ms();
	uint32_t *progress = m->code + CODE_PROGRESS, start = READ_ONCE(*progress);

	while (now_ms() < begin + scaled(1500)) {
		if (faulting) {
			memfd_to_shared(m->fd, SIZE - UNIT, UNIT);
			memfd_to_private(m->fd, SIZE - UNIT, UNIT);
		}
		usleep(1000);
	}
	faults = get_vm_stat(m->vm, "private_faults") - faults;
	TEST_ASSERT(!faults == !faulting, "The guest had %lu faults", faults);
	return (READ_ONCE(*progress) - start) * 1000ull / (now_ms() - begin);
}

static uint64_t rounds_beside(struct machine *m, bool idle, bool faulting)
{
	struct storm storm = {
		.idle = idle,
		.fd = private_memfd(max(STORM_UNITS * UNIT, SIZE)),
		.conversions = map_for_children(PAGE_SIZE),
	};
	uint64_t rounds, before;
	int tries = 0;
	pid_t pid;

	pid = start(run_storm, &storm);
	usleep(300000);
	before = READ_ONCE(*storm.conversions);
	do {
		rounds = rounds_per_second(m, faulting);
	} while (!idle && READ_ONCE(*storm.conversions) == before && tries++ < 20);
	TEST_ASSERT(idle || READ_ONCE(*storm.conversions) > before, "There was no storm");
	TEST_ASSERT(!waitpid(pid, NULL, WNOHANG), "The neighbour has ended");
	kill_now(pid, idle ? "A busy neighbour" : "A neighbour that converts");
	munmap(storm.conversions, PAGE_SIZE);
	close(storm.fd);
	return rounds;
}

/*
 * Who has a CPU for himself, or a share of one, makes progress, whatever others
 * do with their own file, and loses nothing of what is mapped.
 */
TEST_F_TIMEOUT(hostile, conversion_storm, TIMEOUT)
{
	uint64_t alone, busy, storm;
	struct machine m = {};
	int faulting;

	machine_set_up(&m);
	for (faulting = 0; faulting < 2; faulting++) {
		alone = rounds_per_second(&m, faulting);
		busy = rounds_beside(&m, true, faulting);
		storm = rounds_beside(&m, false, faulting);
		pr_info("# rounds/s%s: %lu alone, %lu beside %d busy threads, %lu beside so many that convert\n",
			faulting ? " with faults" : "", alone, busy, STORM_THREADS, storm);
		TEST_ASSERT(storm > alone / 20, "%lu rounds/s alone, %lu beside conversions",
			    alone, storm);
	}
	machine_stop(&m);
	kvm_vm_free(m.vm);
	close(m.fd);
	assert_counters(&self->before, "Neighbours");
}

int main(int argc, char *argv[])
{
	require_private_mem();
	return test_harness_run(argc, argv);
}
