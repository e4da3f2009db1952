// SPDX-License-Identifier: GPL-2.0
/*
 * Each attempt is a function that tries one way and returns how many bytes it
 * moved (or 0 for what moves none), or -errno; what it read is then in t->loot.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmm.h"

#define OTHER_GPA	(2 * RAM_MAX)	/* where no slot is */
#define OTHER_SLOT	100		/* which is no slot yet */

struct target {
	struct vm *vm;
	struct ram *ram;
	int fd;			/* the RAM's file */
	off_t off;		/* in the file */
	__u8 *alias;		/* the same in the shared half */
	__u8 *loot;		/* a page, shared with children */
	int scratch;		/* a plain memfd of one page of junk */
	int arg;
};

static ssize_t ret_errno(ssize_t ret)
{
	return ret < 0 ? -errno : ret;
}

static ssize_t close_and_return(int fd, ssize_t ret)
{
	close(fd);
	return ret;
}

/* --- by the file: read --- */

static ssize_t try_read(struct target *t)
{
	if (lseek(t->fd, t->off, SEEK_SET) < 0)
		return -errno;
	return ret_errno(read(t->fd, t->loot, PAGE_SIZE));
}

static ssize_t try_pread(struct target *t)
{
	return ret_errno(pread(t->fd, t->loot, PAGE_SIZE, t->off));
}

static ssize_t try_readv(struct target *t)
{
	struct iovec iov[2] = { { t->loot, 100 }, { t->loot + 100, PAGE_SIZE - 100 } };

	if (lseek(t->fd, t->off, SEEK_SET) < 0)
		return -errno;
	return ret_errno(readv(t->fd, iov, 2));
}

static ssize_t try_preadv2(struct target *t)
{
	struct iovec iov = { t->loot, PAGE_SIZE };

	return ret_errno(preadv2(t->fd, &iov, 1, t->off, RWF_HIPRI));
}

static ssize_t read_scratch(struct target *t, ssize_t ret)
{
	return ret < 0 ? -errno : pread(t->scratch, t->loot, PAGE_SIZE, 0);
}

static ssize_t try_sendfile(struct target *t)
{
	off_t off = t->off;

	lseek(t->scratch, 0, SEEK_SET);
	return read_scratch(t, sendfile(t->scratch, t->fd, &off, PAGE_SIZE));
}

static ssize_t try_copy_file_range(struct target *t)
{
	off_t from = t->off, to = 0;

	return read_scratch(t, copy_file_range(t->fd, &from, t->scratch, &to, PAGE_SIZE, 0));
}

static ssize_t try_splice(struct target *t)
{
	off_t off = t->off;
	ssize_t ret;
	int p[2];

	if (pipe(p))
		return -errno;
	ret = ret_errno(splice(t->fd, &off, p[1], NULL, PAGE_SIZE, 0));
	if (ret > 0)
		ret = ret_errno(read(p[0], t->loot, PAGE_SIZE));
	close(p[0]);
	return close_and_return(p[1], ret);
}

static int reopen(struct target *t, int flags)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", t->fd);
	return open(path, flags | O_CLOEXEC);
}

static ssize_t try_reopen_pread(struct target *t)
{
	int fd = reopen(t, t->arg);

	if (fd < 0)
		return -errno;
	return close_and_return(fd, ret_errno(pread(fd, t->loot, PAGE_SIZE, t->off)));
}

/* Needs a capability, and gets a struct file that memfd.c has never seen. */
static ssize_t try_handle_pread(struct target *t)
{
	struct {
		struct file_handle fh;
		__u8 bytes[128];
	} h = { .fh.handle_bytes = sizeof(h.bytes) };
	int id, fd;

	if (name_to_handle_at(t->fd, "", &h.fh, &id, AT_EMPTY_PATH))
		return -errno;
	fd = open_by_handle_at(t->fd, &h.fh, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return close_and_return(fd, ret_errno(pread(fd, t->loot, PAGE_SIZE, t->off)));
}

static ssize_t in_child(struct target *t, ssize_t (*fn)(struct target *t))
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return -errno;
	if (!pid) {
		ssize_t ret = fn(t);

		_exit(ret < 0 ? -ret : 0);
	}
	if (waitpid(pid, &status, 0) < 0)
		return -errno;
	if (!WIFEXITED(status))
		return -ECHILD;
	return WEXITSTATUS(status) ? -WEXITSTATUS(status) : (ssize_t)PAGE_SIZE;
}

static ssize_t try_child_pread(struct target *t)
{
	return in_child(t, try_pread);
}

/* --- by the file: map, execute --- */

static ssize_t map_and_read(struct target *t, int fd, int prot, int flags)
{
	const size_t len = t->ram->unit, in = t->off % len;
	__u8 *p = mmap(NULL, len, prot, flags, fd, t->off - in);

	if (p == MAP_FAILED)
		return -errno;
	if (prot == PROT_NONE)
		mprotect(p, len, PROT_READ);
	memcpy(t->loot, p + in, PAGE_SIZE);
	munmap(p, len);
	return PAGE_SIZE;
}

static ssize_t try_mmap_shared(struct target *t)
{
	return map_and_read(t, t->fd, t->arg, MAP_SHARED);
}

static ssize_t try_mmap_private(struct target *t)
{
	return map_and_read(t, t->fd, t->arg, MAP_PRIVATE);
}

static ssize_t try_reopen_mmap(struct target *t)
{
	int fd = reopen(t, O_RDONLY);

	if (fd < 0)
		return -errno;
	return close_and_return(fd, map_and_read(t, fd, PROT_READ, MAP_SHARED));
}

static ssize_t try_map_write(struct target *t)
{
	const size_t len = t->ram->unit, in = t->off % len;
	__u8 *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, t->off - in);

	if (p == MAP_FAILED)
		return -errno;
	memcpy(p + in, "tampered", 8);
	munmap(p, len);
	return 8;
}

static ssize_t do_execveat(struct target *t)
{
	return ret_errno(execveat(t->fd, "", (char *[]){ "guest-ram", NULL },
				  (char *[]){ NULL }, AT_EMPTY_PATH));
}

static ssize_t try_execveat(struct target *t)
{
	return in_child(t, do_execveat);
}

/* --- by the file: write --- */

static ssize_t try_write(struct target *t)
{
	if (lseek(t->fd, t->off, SEEK_SET) < 0)
		return -errno;
	return ret_errno(write(t->fd, "tampered", 8));
}

static ssize_t try_pwrite(struct target *t)
{
	return ret_errno(pwrite(t->fd, "tampered", 8, t->off));
}

static ssize_t try_pwritev(struct target *t)
{
	struct iovec iov[2] = { { "tam", 3 }, { "pered", 5 } };

	return ret_errno(pwritev(t->fd, iov, 2, t->off));
}

static ssize_t try_reopen_pwrite(struct target *t)
{
	int fd = reopen(t, O_RDWR);

	if (fd < 0)
		return -errno;
	return close_and_return(fd, ret_errno(pwrite(fd, "tampered", 8, t->off)));
}

static ssize_t try_sendfile_in(struct target *t)
{
	off_t off = 0;

	if (lseek(t->fd, t->off, SEEK_SET) < 0)
		return -errno;
	return ret_errno(sendfile(t->fd, t->scratch, &off, PAGE_SIZE));
}

static ssize_t try_copy_file_range_in(struct target *t)
{
	off_t from = 0, to = t->off;

	return ret_errno(copy_file_range(t->scratch, &from, t->fd, &to, PAGE_SIZE, 0));
}

static ssize_t try_splice_in(struct target *t)
{
	off_t off = t->off;
	ssize_t ret;
	int p[2];

	if (pipe(p))
		return -errno;
	ret = ret_errno(write(p[1], "tampered", 8));
	if (ret > 0)
		ret = ret_errno(splice(p[0], NULL, t->fd, &off, 8, 0));
	close(p[0]);
	return close_and_return(p[1], ret);
}

/* --- by the file: its shape and its seals --- */

/* To a size and back. A smaller one costs a guest on ordinary RAM its last page. */
static ssize_t try_ftruncate(struct target *t)
{
	const off_t size = t->ram->config.size;

	if (ftruncate(t->fd, size + t->arg * (off_t)t->ram->unit))
		return -errno;
	return ret_errno(ftruncate(t->fd, size));
}

static ssize_t try_punch_half_page(struct target *t)
{
	if (fallocate(t->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      t->off, PAGE_SIZE / 2))
		return -errno;
	return PAGE_SIZE / 2;
}

static ssize_t try_seal(struct target *t)
{
	return ret_errno(fcntl(t->fd, F_ADD_SEALS, t->arg));
}

/* --- by the address space: the shared half at the same place --- */

static ssize_t try_alias_load(struct target *t)
{
	/* Lazy RAM has no shared half there: make one. */
	if (mprotect(t->alias, PAGE_SIZE, PROT_READ | PROT_WRITE))
		return -errno;
	memcpy(t->loot, t->alias, PAGE_SIZE);
	if (t->ram->config.kind == RAM_LAZY)
		mprotect(t->alias, PAGE_SIZE, PROT_NONE);
	return PAGE_SIZE;
}

static ssize_t try_alias_vm_readv(struct target *t)
{
	struct iovec to = { t->loot, PAGE_SIZE }, from = { t->alias, PAGE_SIZE };

	return ret_errno(process_vm_readv(getpid(), &to, 1, &from, 1, 0));
}

static ssize_t try_alias_proc_mem(struct target *t)
{
	int fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	return close_and_return(fd, ret_errno(pread(fd, t->loot, PAGE_SIZE,
						    (unsigned long)t->alias)));
}

static ssize_t try_alias_vmsplice(struct target *t)
{
	struct iovec iov = { t->alias, PAGE_SIZE };
	ssize_t ret;
	int p[2];

	if (pipe(p))
		return -errno;
	ret = ret_errno(vmsplice(p[1], &iov, 1, 0));
	if (ret > 0)
		ret = ret_errno(read(p[0], t->loot, PAGE_SIZE));
	close(p[0]);
	return close_and_return(p[1], ret);
}

/*
 * In another process, that is: a child, which may look at its parent. The
 * parent waits in waitpid() meanwhile; @t->arg is its thread.
 */
static ssize_t do_parent_vm_readv(struct target *t)
{
	struct iovec to = { t->loot, PAGE_SIZE }, from = { t->alias, PAGE_SIZE };

	return ret_errno(process_vm_readv(getppid(), &to, 1, &from, 1, 0));
}

static ssize_t do_parent_proc_mem(struct target *t)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", getppid());
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return close_and_return(fd, ret_errno(pread(fd, t->loot, PAGE_SIZE,
						    (unsigned long)t->alias)));
}

static ssize_t do_parent_ptrace(struct target *t)
{
	size_t i, words = PAGE_SIZE / sizeof(long);
	ssize_t ret = PAGE_SIZE;

	if (ptrace(PTRACE_SEIZE, t->arg, NULL, NULL) ||
	    ptrace(PTRACE_INTERRUPT, t->arg, NULL, NULL) ||
	    waitpid(t->arg, NULL, __WALL) != t->arg)
		return -errno;
	for (i = 0, errno = 0; i < words && !errno; i++)
		((long *)t->loot)[i] = ptrace(PTRACE_PEEKDATA, t->arg, (long *)t->alias + i, NULL);
	if (errno)
		ret = -errno;
	ptrace(PTRACE_DETACH, t->arg, NULL, NULL);
	return ret;
}

static ssize_t try_child_vm_readv(struct target *t)
{
	return in_child(t, do_parent_vm_readv);
}

static ssize_t try_child_proc_mem(struct target *t)
{
	return in_child(t, do_parent_proc_mem);
}

static ssize_t try_child_ptrace(struct target *t)
{
	t->arg = gettid();
	return in_child(t, do_parent_ptrace);
}

static ssize_t try_alias_store(struct target *t)
{
	if (mprotect(t->alias, PAGE_SIZE, PROT_READ | PROT_WRITE))
		return -errno;
	memcpy(t->alias, "tampered", 8);
	if (t->ram->config.kind == RAM_LAZY)
		mprotect(t->alias, PAGE_SIZE, PROT_NONE);
	return 8;
}

static ssize_t try_alias_vm_writev(struct target *t)
{
	struct iovec from = { "tampered", 8 }, to = { t->alias, 8 };

	return ret_errno(process_vm_writev(getpid(), &from, 1, &to, 1, 0));
}

/* --- by KVM --- */

/* The same file range a second time, in this VM or another. */
static ssize_t bind_again(struct target *t, int vm, __u32 nr)
{
	struct kvm_userspace_memory_region2 slot;

	ram_slot(t->ram, 0, &slot);
	slot.slot = nr;
	slot.guest_phys_addr = OTHER_GPA;
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &slot))
		return -errno;
	slot.memory_size = 0;
	ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &slot);
	return 0;
}

static ssize_t try_second_slot(struct target *t)
{
	return bind_again(t, t->vm->fd, OTHER_SLOT);
}

static ssize_t try_second_vm(struct target *t)
{
	int vm = vm_create_other(t->vm);

	if (vm < 0)
		return -errno;
	return close_and_return(vm, bind_again(t, vm, 0));
}

/* Make the slot an ordinary one, so that the guest falls back to the alias. */
static ssize_t try_drop_flag(struct target *t)
{
	struct kvm_userspace_memory_region2 slot;

	ram_slot(t->ram, 0, &slot);
	slot.flags = 0;
	return ret_errno(ioctl(t->vm->fd, KVM_SET_USER_MEMORY_REGION2, &slot));
}

/* --- all of them --- */

enum {
	SHAPE,		/* neither reads nor writes */
	READ,
	WRITE,
};

/*
 * What private RAM has to answer is @want, or @or where the ABI leaves open
 * which of two reasons comes first; @hugetlb where hugetlbfs has no such call,
 * or had none when the file was opened, which was before the seal. ALIAS: this
 * goes to the shared half, which is the VMM's own; it may succeed, but without
 * any effect on the content. What ordinary RAM has to answer is success, or
 * @control. UNTRIED: it would succeed, and the control run could not go on.
 */
#define ALIAS	-1
#define UNTRIED	-1

static const struct attempt {
	const char *name;
	int does;
	ssize_t (*fn)(struct target *t);
	int arg;
	int want, or, control, hugetlb;
} attempts[] = {
	{ "read", READ, try_read, 0, EPERM },
	{ "pread", READ, try_pread, 0, EPERM },
	{ "readv", READ, try_readv, 0, EPERM },
	{ "preadv2", READ, try_preadv2, 0, EPERM },
	{ "pread in another process", READ, try_child_pread, 0, EPERM },
	{ "reopen read-only, pread", READ, try_reopen_pread, O_RDONLY, EPERM },
	{ "reopen read-write, pread", READ, try_reopen_pread, O_RDWR, EPERM },
	{ "open_by_handle_at, pread", READ, try_handle_pread, 0, EPERM, .hugetlb = EOPNOTSUPP },
	{ "sendfile to a file", READ, try_sendfile, 0, EPERM, .hugetlb = EINVAL },
	{ "splice to a pipe", READ, try_splice, 0, EPERM, .hugetlb = EINVAL },
	{ "copy_file_range to a file", READ, try_copy_file_range, 0, EPERM, .hugetlb = EXDEV },
	{ "mmap shared, none", READ, try_mmap_shared, PROT_NONE, EPERM },
	{ "mmap shared, read", READ, try_mmap_shared, PROT_READ, EPERM },
	{ "mmap shared, read-write", READ, try_mmap_shared, PROT_READ | PROT_WRITE, EPERM },
	{ "mmap private, read", READ, try_mmap_private, PROT_READ, EPERM },
	{ "mmap private, read-write", READ, try_mmap_private, PROT_READ | PROT_WRITE, EPERM },
	{ "reopen read-only, mmap", READ, try_reopen_mmap, 0, EPERM },
	{ "alias: load", READ, try_alias_load, 0, ALIAS },
	{ "alias: process_vm_readv", READ, try_alias_vm_readv, 0, ALIAS },
	{ "alias: /proc/self/mem", READ, try_alias_proc_mem, 0, ALIAS },
	{ "alias: vmsplice to a pipe", READ, try_alias_vmsplice, 0, ALIAS },
	{ "alias: a child's process_vm_readv", READ, try_child_vm_readv, 0, ALIAS },
	{ "alias: a child's /proc/PID/mem", READ, try_child_proc_mem, 0, ALIAS },
	{ "alias: a child's ptrace", READ, try_child_ptrace, 0, ALIAS },

	{ "write", WRITE, try_write, 0, EPERM, .hugetlb = EINVAL },
	{ "pwrite", WRITE, try_pwrite, 0, EPERM, .hugetlb = EINVAL },
	{ "pwritev", WRITE, try_pwritev, 0, EPERM, .hugetlb = EINVAL },
	{ "reopen, pwrite", WRITE, try_reopen_pwrite, 0, EPERM },
	{ "sendfile from a file", WRITE, try_sendfile_in, 0, EPERM, .hugetlb = EINVAL },
	{ "splice from a pipe", WRITE, try_splice_in, 0, EPERM, .hugetlb = EINVAL },
	{ "copy_file_range from a file", WRITE, try_copy_file_range_in, 0, EPERM, .hugetlb = EXDEV },
	{ "mmap, store", WRITE, try_map_write, 0, EPERM },
	{ "punch half a page", WRITE, try_punch_half_page, 0, EINVAL },
	{ "alias: store", WRITE, try_alias_store, 0, ALIAS },
	{ "alias: process_vm_writev", WRITE, try_alias_vm_writev, 0, ALIAS },

	{ "execveat", SHAPE, try_execveat, 0, EACCES, 0, ENOEXEC },
	{ "ftruncate, larger", SHAPE, try_ftruncate, 1, EPERM },
	{ "ftruncate, smaller", SHAPE, try_ftruncate, -1, EPERM, 0, UNTRIED },
	{ "second slot on the same range", SHAPE, try_second_slot, 0, EEXIST },
	{ "second VM on the same range", SHAPE, try_second_vm, 0, EBUSY, EEXIST },
	{ "slot flags to 0", SHAPE, try_drop_flag, 0, EINVAL },
	{ "F_SEAL_FUTURE_WRITE", SHAPE, try_seal, F_SEAL_FUTURE_WRITE, EPERM, 0, UNTRIED },
	{ "F_SEAL_WRITE", SHAPE, try_seal, F_SEAL_WRITE, EPERM, 0, EBUSY },
};

static int wanted(const struct attempt *a, const struct ram *ram)
{
	return ram->config.hugetlb && a->hugetlb ? a->hugetlb : a->want;
}

static bool as_wanted(const struct attempt *a, const struct ram *ram, ssize_t ret, bool leaked)
{
	const bool ordinary = !ram_is_private(ram);

	if (ordinary && a->does == SHAPE)
		return ret >= 0 || ret == -a->control;
	if (ordinary)
		return ret > 0 && (leaked || a->does == WRITE);
	if (leaked)
		return false;
	return a->want == ALIAS || ret == -wanted(a, ram) || (a->or && ret == -a->or);
}

static void report(const struct attempt *a, const struct ram *ram, ssize_t ret, bool leaked)
{
	const bool ok = as_wanted(a, ram, ret, leaked);
	char got[64];

	if (ret == -ENOSYS && !leaked) {
		untried("%-34s not in this kernel", a->name);
		return;
	}
	if (ret < 0)
		snprintf(got, sizeof(got), "%s", strerrorname_np(-ret));
	else if (a->does == SHAPE)
		snprintf(got, sizeof(got), "done");
	else
		snprintf(got, sizeof(got), "%zd bytes%s", ret,
			 a->does == WRITE ? "" : leaked ? ", the secret" : ", no secret");
	if (!ram_is_private(ram) || a->want == ALIAS)
		check(ok, "%-34s %s", a->name, got);
	else
		check(ok, "%-34s %s (want %s)", a->name, got, strerrorname_np(wanted(a, ram)));
}

static int prepare(struct target *t, struct vm *vm)
{
	*t = (struct target){ .vm = vm, .ram = vm->ram, .fd = vm->ram->fd };
	t->loot = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	t->scratch = memfd_create("junk", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
	if (t->loot == MAP_FAILED || t->scratch < 0 || ftruncate(t->scratch, PAGE_SIZE))
		return failed("preparing the attempts");
	return 0;
}

static void clean_up(struct target *t)
{
	munmap(t->loot, PAGE_SIZE);
	close(t->scratch);
}

/* What it brought is in t->loot. */
static ssize_t attempt(const struct attempt *a, struct target *t, __u64 gpa)
{
	t->arg = a->arg;
	t->off = ram_offset(t->ram, gpa, PAGE_SIZE);
	t->alias = ram_shared_half(t->ram, gpa, PAGE_SIZE);
	memset(t->loot, 0, PAGE_SIZE);
	return a->fn(t);
}

int attack(struct vm *vm, const struct needle *needle, const __u64 *gpa, unsigned int nr)
{
	unsigned int page = 1;
	struct target t;
	int writes = 0;
	size_t i;

	if (prepare(&t, vm))
		return -1;
	for (i = 0; i < ARRAY_SIZE(attempts); i++) {
		const struct attempt *a = &attempts[i];
		ssize_t ret;

		if (!ram_is_private(t.ram) && a->control == UNTRIED)
			continue;
		if (page >= nr)
			return refused("attack() needs more pages");
		ret = attempt(a, &t, gpa[a->does == WRITE ? page++ : 0]);
		report(a, t.ram, ret, needle_find(needle, t.loot, PAGE_SIZE));
		writes += a->does == WRITE && ret > 0;
	}
	clean_up(&t);
	return writes;
}

int attack_read(struct vm *vm, const struct needle *needle, __u64 gpa,
		struct search_result *result)
{
	struct target t;
	int found = 0;
	ssize_t ret;
	size_t i;

	if (prepare(&t, vm))
		return -1;
	for (i = 0; i < ARRAY_SIZE(attempts); i++) {
		if (attempts[i].does != READ)
			continue;
		ret = attempt(&attempts[i], &t, gpa);
		result->attempts++;
		result->bytes += ret > 0 ? ret : 0;
		found += needle_find(needle, t.loot, PAGE_SIZE) != NULL;
	}
	clean_up(&t);
	return found;
}
