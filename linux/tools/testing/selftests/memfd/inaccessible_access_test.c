// SPDX-License-Identifier: GPL-2.0
/*
 * Every way user space has to the content of a file, tried on inaccessible
 * memfds. Each way is tried on an ordinary memfd first, where it must succeed:
 * a way that doesn't lead anywhere proves nothing when it is refused. On
 * hugetlbfs many lead nowhere, which is how it has to be on sealed files, too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <linux/aio_abi.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/memfd.h>
#include <linux/perf_event.h>
#include <linux/udmabuf.h>
#include <linux/userfaultfd.h>

#include "../kselftest_harness.h"
#include "inaccessible_common.h"

/*
 * The file has NPAGES pages of the store, the last one a hole; LEN bytes are
 * asked for, which is less than what can be mapped where pages are huge.
 */
#define NPAGES	8
#define LEN	(2 * PAGE)
#define AT	UNIT
#define MAP_LEN	(ON_HUGETLBFS ? UNIT : LEN)

#define UNTOUCHED 0xaa

struct target {
	int fd;			/* the file, open for reading and writing */
	char *buf;		/* LEN bytes that go in, or have come out */
	const char *missing;	/* set if the kernel lacks what it takes */
};

/*
 * An attempt returns how many bytes it moved from or to offset AT of the file,
 * or -errno. Where the bytes pass a pipe or another file on their way, it
 * returns -EBADMSG if some arrived there and an error was reported none the
 * less.
 */
typedef ssize_t (*attempt_t)(struct target *t);

/* Another file, always on shmem */
static int shmem_file(void)
{
	return mfd_create(MFD_ALLOW_SEALING);
}

static ssize_t missing(struct target *t, const char *what)
{
	t->missing = what;
	return -1;
}

/* ---- system calls of the read and write family ---- */

static ssize_t try_read(struct target *t)
{
	if (lseek(t->fd, AT, SEEK_SET) != (off_t)AT)
		return -ESPIPE;
	return neg_errno(read(t->fd, t->buf, LEN));
}

static ssize_t try_write(struct target *t)
{
	if (lseek(t->fd, AT, SEEK_SET) != (off_t)AT)
		return -ESPIPE;
	return neg_errno(write(t->fd, t->buf, LEN));
}

static ssize_t try_pread(struct target *t)
{
	return neg_errno(pread(t->fd, t->buf, LEN, AT));
}

static ssize_t try_pwrite(struct target *t)
{
	return neg_errno(pwrite(t->fd, t->buf, LEN, AT));
}

static ssize_t try_pwrite_into_hole(struct target *t)
{
	ssize_t ret = neg_errno(pwrite(t->fd, t->buf, PAGE, (NPAGES - 1) * UNIT));

	/* The caller looks for the bytes at AT. */
	if (ret > 0)
		ret = neg_errno(pwrite(t->fd, t->buf, LEN, AT));
	return ret;
}

static void split(struct target *t, struct iovec *iov)
{
	iov[0].iov_base = t->buf;
	iov[0].iov_len = 1;
	iov[1].iov_base = t->buf + 1;
	iov[1].iov_len = LEN - 1;
}

static ssize_t try_readv(struct target *t)
{
	struct iovec iov[2];

	split(t, iov);
	if (lseek(t->fd, AT, SEEK_SET) != (off_t)AT)
		return -ESPIPE;
	return neg_errno(readv(t->fd, iov, 2));
}

static ssize_t try_writev(struct target *t)
{
	struct iovec iov[2];

	split(t, iov);
	if (lseek(t->fd, AT, SEEK_SET) != (off_t)AT)
		return -ESPIPE;
	return neg_errno(writev(t->fd, iov, 2));
}

static ssize_t try_preadv(struct target *t)
{
	struct iovec iov[2];

	split(t, iov);
	return neg_errno(preadv(t->fd, iov, 2, AT));
}

static ssize_t try_pwritev(struct target *t)
{
	struct iovec iov[2];

	split(t, iov);
	return neg_errno(pwritev(t->fd, iov, 2, AT));
}

static ssize_t try_preadv2(struct target *t)
{
	struct iovec iov[2];

	split(t, iov);
	return neg_errno(preadv2(t->fd, iov, 2, AT, RWF_HIPRI));
}

static ssize_t try_pwritev2(struct target *t)
{
	struct iovec iov[2];

	split(t, iov);
	return neg_errno(pwritev2(t->fd, iov, 2, AT, RWF_DSYNC));
}

/* ---- the same through a descriptor opened anew ---- */

static ssize_t reopened(struct target *t, int flags, attempt_t attempt)
{
	struct target other = *t;
	ssize_t ret;

	other.fd = mfd_reopen(t->fd, flags);
	/* If sealed files can't be opened for direct I/O, that's as good. */
	if (other.fd == -EINVAL && flags & O_DIRECT)
		return -EPERM;
	if (other.fd < 0)
		return other.fd;
	ret = attempt(&other);
	t->missing = other.missing;
	close(other.fd);
	return ret;
}

static ssize_t try_read_read_only(struct target *t)
{
	return reopened(t, O_RDONLY, try_read);
}

static ssize_t try_read_direct(struct target *t)
{
	return reopened(t, O_RDWR | O_DIRECT, try_read);
}

static ssize_t try_write_direct(struct target *t)
{
	return reopened(t, O_RDWR | O_DIRECT, try_write);
}

static ssize_t try_write_append(struct target *t)
{
	ssize_t ret = reopened(t, O_WRONLY | O_APPEND, try_write);

	/* The caller looks for the bytes at AT. */
	if (ret > 0)
		ret = neg_errno(pwrite(t->fd, t->buf, LEN, AT));
	return ret;
}

/* ---- asynchronous I/O ---- */

static ssize_t aio(struct target *t, int opcode, void *buf, size_t nbytes)
{
	aio_context_t ctx = 0;
	struct iocb cb = {
		.aio_fildes = t->fd, .aio_lio_opcode = opcode, .aio_offset = AT,
		.aio_buf = (uintptr_t)buf, .aio_nbytes = nbytes,
	};
	struct iocb *cbs[] = { &cb };
	struct io_event event;
	ssize_t ret;

	if (syscall(__NR_io_setup, 1, &ctx))
		return missing(t, "asynchronous I/O (CONFIG_AIO)");
	ret = neg_errno(syscall(__NR_io_submit, ctx, 1, cbs));
	if (ret == 1)
		ret = syscall(__NR_io_getevents, ctx, 1, 1, &event, NULL) == 1 ? event.res : -EIO;
	syscall(__NR_io_destroy, ctx);
	return ret;
}

static ssize_t try_aio_pread(struct target *t)
{
	return aio(t, IOCB_CMD_PREAD, t->buf, LEN);
}

static ssize_t try_aio_pwrite(struct target *t)
{
	return aio(t, IOCB_CMD_PWRITE, t->buf, LEN);
}

static ssize_t try_aio_preadv(struct target *t)
{
	struct iovec iov[2];

	split(t, iov);
	return aio(t, IOCB_CMD_PREADV, iov, 2);
}

static ssize_t try_aio_pwritev(struct target *t)
{
	struct iovec iov[2];

	split(t, iov);
	return aio(t, IOCB_CMD_PWRITEV, iov, 2);
}

/* The fixed variants use registered buffers and a registered file. */
static ssize_t uring(struct target *t, int opcode, const void *addr, size_t len, bool fixed)
{
	struct io_uring_sqe sqe = {
		.opcode = opcode, .fd = t->fd, .off = AT, .addr = (uintptr_t)addr, .len = len,
	};
	struct iovec iov = { t->buf, LEN };
	struct uring ring;
	ssize_t ret = 0;

	if (uring_open(&ring))
		return missing(t, "io_uring (CONFIG_IO_URING)");
	if (fixed) {
		ret = uring_register(&ring, IORING_REGISTER_BUFFERS, &iov, 1);
		if (!ret)
			ret = uring_register(&ring, IORING_REGISTER_FILES, &t->fd, 1);
		sqe.fd = 0;
		sqe.flags = IOSQE_FIXED_FILE;
	}
	if (!ret)
		ret = uring_do(&ring, &sqe);
	uring_close(&ring);
	return ret;
}

static ssize_t try_uring_read(struct target *t)
{
	return uring(t, IORING_OP_READ, t->buf, LEN, false);
}

static ssize_t try_uring_write(struct target *t)
{
	return uring(t, IORING_OP_WRITE, t->buf, LEN, false);
}

static ssize_t try_uring_readv(struct target *t)
{
	struct iovec iov[2];

	split(t, iov);
	return uring(t, IORING_OP_READV, iov, 2, false);
}

static ssize_t try_uring_writev(struct target *t)
{
	struct iovec iov[2];

	split(t, iov);
	return uring(t, IORING_OP_WRITEV, iov, 2, false);
}

static ssize_t try_uring_read_fixed(struct target *t)
{
	return uring(t, IORING_OP_READ_FIXED, t->buf, LEN, true);
}

static ssize_t try_uring_write_fixed(struct target *t)
{
	return uring(t, IORING_OP_WRITE_FIXED, t->buf, LEN, true);
}

/* ---- through pipes, sockets and other files ---- */

static size_t pipe_level(int fd)
{
	int level = 0;

	return ioctl(fd, FIONREAD, &level) ? 0 : level;
}

/* Close the pipe after moving what it holds to the buffer. */
static ssize_t drain(struct target *t, int *p, ssize_t ret)
{
	size_t level = pipe_level(p[0]);

	if (ret < 0 && level)
		ret = -EBADMSG;
	if (level && read(p[0], t->buf, LEN) != (ssize_t)level)
		ret = -EBADMSG;
	close(p[0]);
	close(p[1]);
	return ret;
}

static ssize_t try_splice_out(struct target *t)
{
	off_t off = AT;
	int p[2];

	if (pipe(p))
		return -errno;
	return drain(t, p, neg_errno(splice(t->fd, &off, p[1], NULL, LEN, 0)));
}

static ssize_t try_splice_out_direct(struct target *t)
{
	return reopened(t, O_RDONLY | O_DIRECT, try_splice_out);
}

static ssize_t try_uring_splice_out(struct target *t)
{
	struct io_uring_sqe sqe = {
		.opcode = IORING_OP_SPLICE, .splice_fd_in = t->fd, .splice_off_in = AT,
		.off = -1, .len = LEN,
	};
	struct uring ring;
	ssize_t ret;
	int p[2];

	if (uring_open(&ring))
		return missing(t, "io_uring (CONFIG_IO_URING)");
	if (pipe(p))
		return -errno;
	sqe.fd = p[1];
	ret = uring_do(&ring, &sqe);
	uring_close(&ring);
	return drain(t, p, ret);
}

static ssize_t try_sendfile_to_pipe(struct target *t)
{
	off_t off = AT;
	int p[2];

	if (pipe(p))
		return -errno;
	return drain(t, p, neg_errno(sendfile(p[1], t->fd, &off, LEN)));
}

static ssize_t try_sendfile_to_socket(struct target *t)
{
	off_t off = AT;
	ssize_t ret;
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, sv))
		return missing(t, "sockets (CONFIG_UNIX)");
	ret = neg_errno(sendfile(sv[0], t->fd, &off, LEN));
	if (ret > 0)
		ret = neg_errno(recv(sv[1], t->buf, LEN, MSG_WAITALL));
	else if (recv(sv[1], t->buf, LEN, MSG_DONTWAIT) >= 0)
		ret = -EBADMSG;
	close(sv[0]);
	close(sv[1]);
	return ret;
}

/* Look at what arrived in the other file, then close it. */
static ssize_t harvest(struct target *t, int other, ssize_t ret)
{
	if (ret > 0)
		ret = neg_errno(pread(other, t->buf, LEN, 0));
	else if (file_size(other))
		ret = -EBADMSG;
	close(other);
	return ret;
}

static ssize_t try_sendfile_to_file(struct target *t)
{
	int other = shmem_file();
	off_t off = AT;

	return harvest(t, other, neg_errno(sendfile(other, t->fd, &off, LEN)));
}

static ssize_t try_copy_file_range_out(struct target *t)
{
	int other = shmem_file();
	off_t off = AT, to = 0;

	return harvest(t, other, neg_errno(copy_file_range(t->fd, &off, other, &to, LEN, 0)));
}

/* A pipe that holds what is to be written; -EBADMSG if a failure ate it. */
static int filled_pipe(struct target *t, int *p)
{
	if (pipe(p))
		return -errno;
	return write(p[1], t->buf, LEN) == (ssize_t)LEN ? 0 : -EIO;
}

static ssize_t leave_pipe(int *p, ssize_t ret)
{
	if (ret < 0 && pipe_level(p[0]) != LEN)
		ret = -EBADMSG;
	close(p[0]);
	close(p[1]);
	return ret;
}

static ssize_t try_splice_in(struct target *t)
{
	off_t off = AT;
	int p[2], err;

	err = filled_pipe(t, p);
	if (err)
		return err;
	return leave_pipe(p, neg_errno(splice(p[0], NULL, t->fd, &off, LEN, 0)));
}

static ssize_t try_vmsplice_in(struct target *t)
{
	struct iovec iov = { t->buf, LEN };
	off_t off = AT;
	ssize_t ret;
	int p[2];

	if (pipe(p))
		return -errno;
	ret = neg_errno(vmsplice(p[1], &iov, 1, 0));
	if (ret == (ssize_t)LEN)
		ret = leave_pipe(p, neg_errno(splice(p[0], NULL, t->fd, &off, LEN, SPLICE_F_MOVE)));
	return ret;
}

static ssize_t try_uring_splice_in(struct target *t)
{
	struct io_uring_sqe sqe = {
		.opcode = IORING_OP_SPLICE, .splice_off_in = -1, .fd = t->fd, .off = AT,
		.len = LEN,
	};
	struct uring ring;
	ssize_t ret;
	int p[2], err;

	if (uring_open(&ring))
		return missing(t, "io_uring (CONFIG_IO_URING)");
	err = filled_pipe(t, p);
	if (err)
		return err;
	sqe.splice_fd_in = p[0];
	ret = uring_do(&ring, &sqe);
	uring_close(&ring);
	return leave_pipe(p, ret);
}

static int source_file(struct target *t)
{
	int other = shmem_file();

	if (other >= 0 && pwrite(other, t->buf, LEN, 0) != (ssize_t)LEN) {
		close(other);
		other = -EIO;
	}
	return other;
}

static ssize_t try_sendfile_in(struct target *t)
{
	int other = source_file(t);
	ssize_t ret;

	if (other < 0)
		return other;
	if (lseek(t->fd, AT, SEEK_SET) != (off_t)AT)
		return -ESPIPE;
	ret = neg_errno(sendfile(t->fd, other, NULL, LEN));
	if (ret < 0 && lseek(other, 0, SEEK_CUR))
		ret = -EBADMSG;
	close(other);
	return ret;
}

static ssize_t try_copy_file_range_in(struct target *t)
{
	int other = source_file(t);
	off_t off = 0, to = AT;
	ssize_t ret;

	if (other < 0)
		return other;
	ret = neg_errno(copy_file_range(other, &off, t->fd, &to, LEN, 0));
	close(other);
	return ret;
}

/* ---- block device on top of the file ---- */

static ssize_t loop_io(struct target *t, bool write)
{
	char dev[32];
	ssize_t ret;
	int loop;

	loop = loop_attach(t->fd, dev, sizeof(dev));
	if (loop == -ENOENT || loop == -ENODEV || loop == -ENXIO)
		return missing(t, "loop devices (CONFIG_BLK_DEV_LOOP)");
	if (loop < 0)
		return loop;
	if (write) {
		ret = neg_errno(pwrite(loop, t->buf, LEN, AT));
		/* Written to the cache of the device; now to the file. */
		if (ret > 0 && fsync(loop))
			ret = -errno;
	} else {
		ret = neg_errno(pread(loop, t->buf, LEN, AT));
	}
	ioctl(loop, LOOP_CLR_FD, 0);
	close(loop);
	return ret;
}

static ssize_t loop_read(struct target *t)
{
	return loop_io(t, false);
}

/* A file that is open for writing, but can't be written to, isn't taken. */
static ssize_t try_loop_read(struct target *t)
{
	return ON_HUGETLBFS ? reopened(t, O_RDONLY, loop_read) : loop_read(t);
}

static ssize_t try_loop_write(struct target *t)
{
	return loop_io(t, true);
}

/* ---- mappings, and what needs one ---- */

static ssize_t map(struct target *t, int prot, int flags, bool write)
{
	char *p = mmap(NULL, MAP_LEN, prot, flags, t->fd, AT);

	if (p == MAP_FAILED)
		return -errno;
	if (prot != (PROT_READ | PROT_WRITE) && mprotect(p, MAP_LEN, PROT_READ)) {
		munmap(p, MAP_LEN);
		return -errno;
	}
	if (write)
		memcpy(p, t->buf, LEN);
	else
		memcpy(t->buf, p, LEN);
	munmap(p, MAP_LEN);
	return LEN;
}

static ssize_t try_map_shared(struct target *t)
{
	return map(t, PROT_READ | PROT_WRITE, MAP_SHARED, false);
}

static ssize_t try_map_shared_write(struct target *t)
{
	return map(t, PROT_READ | PROT_WRITE, MAP_SHARED, true);
}

static ssize_t try_map_shared_read_only(struct target *t)
{
	return map(t, PROT_READ, MAP_SHARED, false);
}

static ssize_t try_map_shared_none(struct target *t)
{
	return map(t, PROT_NONE, MAP_SHARED, false);
}

static ssize_t try_map_shared_exec(struct target *t)
{
	return map(t, PROT_READ | PROT_EXEC, MAP_SHARED, false);
}

static ssize_t try_map_shared_populate(struct target *t)
{
	return map(t, PROT_READ, MAP_SHARED | MAP_POPULATE, false);
}

static ssize_t try_map_shared_validate(struct target *t)
{
	return map(t, PROT_READ, MAP_SHARED_VALIDATE, false);
}

static ssize_t try_map_private(struct target *t)
{
	return map(t, PROT_READ | PROT_WRITE, MAP_PRIVATE, false);
}

static ssize_t try_map_private_none(struct target *t)
{
	return map(t, PROT_NONE, MAP_PRIVATE, false);
}

static ssize_t try_map_private_exec(struct target *t)
{
	return map(t, PROT_READ | PROT_EXEC, MAP_PRIVATE, false);
}

static ssize_t try_map_private_locked(struct target *t)
{
	return map(t, PROT_READ, MAP_PRIVATE | MAP_LOCKED | MAP_NORESERVE, false);
}

static ssize_t try_map_read_only_descriptor(struct target *t)
{
	struct target other = *t;
	ssize_t ret;

	other.fd = mfd_reopen(t->fd, O_RDONLY);
	if (other.fd < 0)
		return other.fd;
	ret = map(&other, PROT_READ, MAP_SHARED, false);
	close(other.fd);
	return ret;
}

static ssize_t try_process_vm_readv(struct target *t)
{
	struct iovec here = { t->buf, LEN }, there = { NULL, LEN };
	ssize_t ret;

	there.iov_base = mmap(NULL, MAP_LEN, PROT_READ, MAP_SHARED, t->fd, AT);
	if (there.iov_base == MAP_FAILED)
		return -errno;
	ret = neg_errno(process_vm_readv(getpid(), &here, 1, &there, 1, 0));
	munmap(there.iov_base, MAP_LEN);
	if (no_such_call(ret))
		return missing(t, "process_vm_readv() (CONFIG_CROSS_MEMORY_ATTACH)");
	return ret;
}

static ssize_t try_proc_mem(struct target *t)
{
	ssize_t ret;
	void *p;
	int fd;

	p = mmap(NULL, MAP_LEN, PROT_NONE, MAP_SHARED, t->fd, AT);
	if (p == MAP_FAILED)
		return -errno;
	fd = open("/proc/self/mem", O_RDWR);
	ret = neg_errno(pread(fd, t->buf, LEN, (uintptr_t)p));
	close(fd);
	munmap(p, MAP_LEN);
	return ret;
}

static ssize_t try_vmsplice_out(struct target *t)
{
	struct iovec iov = { NULL, LEN };
	ssize_t ret;
	int p[2];

	iov.iov_base = mmap(NULL, MAP_LEN, PROT_READ, MAP_SHARED, t->fd, AT);
	if (iov.iov_base == MAP_FAILED)
		return -errno;
	if (pipe(p))
		return -errno;
	ret = neg_errno(vmsplice(p[1], &iov, 1, 0));
	munmap(iov.iov_base, MAP_LEN);
	return drain(t, p, ret);
}

static ssize_t uffd_open(struct target *t, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (uffd < 0)
		return missing(t, "userfaultfd (CONFIG_USERFAULTFD)");
	if (ioctl(uffd, UFFDIO_API, &api)) {
		close(uffd);
		return missing(t, "userfaultfd on files");
	}
	return uffd;
}

/* Map the page behind a minor fault, in a private mapping as well. */
static ssize_t try_uffd_continue(struct target *t)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MINOR };
	struct uffdio_continue cont = { 0 };
	ssize_t ret, uffd;
	void *p;

	uffd = uffd_open(t, ON_HUGETLBFS ? UFFD_FEATURE_MINOR_HUGETLBFS :
					   UFFD_FEATURE_MINOR_SHMEM);
	if (uffd < 0)
		return uffd;
	p = mmap(NULL, MAP_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE, t->fd, AT);
	if (p == MAP_FAILED) {
		ret = -errno;
		close(uffd);
		return ret;
	}
	reg.range.start = (uintptr_t)p;
	reg.range.len = MAP_LEN;
	cont.range = reg.range;
	ret = neg_errno(ioctl(uffd, UFFDIO_REGISTER, &reg));
	if (!ret)
		ret = neg_errno(ioctl(uffd, UFFDIO_CONTINUE, &cont));
	if (!ret) {
		memcpy(t->buf, p, LEN);
		ret = LEN;
	}
	munmap(p, MAP_LEN);
	close(uffd);
	return ret;
}

/* Put pages into the file's holes, by way of a mapping. */
static ssize_t try_uffd_copy(struct target *t)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_copy copy = { .src = (uintptr_t)t->buf };
	ssize_t ret, uffd;
	void *p;

	uffd = uffd_open(t, ON_HUGETLBFS ? UFFD_FEATURE_MISSING_HUGETLBFS :
					   UFFD_FEATURE_MISSING_SHMEM);
	if (uffd < 0)
		return uffd;
	p = mmap(NULL, UNIT, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, (NPAGES - 1) * UNIT);
	if (p == MAP_FAILED) {
		ret = -errno;
		close(uffd);
		return ret;
	}
	reg.range.start = (uintptr_t)p;
	reg.range.len = UNIT;
	copy.dst = (uintptr_t)p;
	copy.len = UNIT;
	ret = neg_errno(ioctl(uffd, UFFDIO_REGISTER, &reg));
	if (!ret)
		ret = neg_errno(ioctl(uffd, UFFDIO_COPY, &copy));
	munmap(p, UNIT);
	close(uffd);
	/* The caller looks for the bytes at AT. */
	if (!ret)
		ret = mfd_put(t->fd, t->buf, LEN, AT) ?: (ssize_t)LEN;
	return ret;
}

static ssize_t try_udmabuf(struct target *t)
{
	struct udmabuf_create create = { .memfd = t->fd, .offset = AT, .size = LEN };
	ssize_t ret;
	void *p;
	int dev, dmabuf;

	/* udmabuf wants this seal; not all files can get it. */
	if (!(fcntl(t->fd, F_GET_SEALS) & F_SEAL_SHRINK))
		do_add_seals(t->fd, F_SEAL_SHRINK);
	dev = open("/dev/udmabuf", O_RDWR);
	if (dev < 0)
		return missing(t, "/dev/udmabuf (CONFIG_UDMABUF)");
	dmabuf = ioctl(dev, UDMABUF_CREATE, &create);
	ret = neg_errno(dmabuf);
	close(dev);
	if (dmabuf < 0)
		return ret;
	p = mmap(NULL, LEN, PROT_READ, MAP_SHARED, dmabuf, 0);
	if (p == MAP_FAILED) {
		ret = -errno;
	} else {
		memcpy(t->buf, p, LEN);
		munmap(p, LEN);
		ret = LEN;
	}
	close(dmabuf);
	return ret;
}

/* ---- the ways, and the files they are tried on ---- */

enum direction { READS, WRITES };

FIXTURE(path)
{
	struct target t;
	char *expected;
};

FIXTURE_VARIANT(path)
{
	attempt_t attempt;
	enum direction direction;
	int err;
	int hugetlb_err;	/* of any hugetlbfs file: leads nowhere there */
};

#define WAY(name, which, error)	.attempt = try_##name, .direction = which, .err = error
#define SHMEM(name, which, error, other) WAY(name, which, error), .hugetlb_err = other

FIXTURE_VARIANT_ADD(path, read) { WAY(read, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, pread) { WAY(pread, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, readv) { WAY(readv, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, preadv) { WAY(preadv, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, preadv2) { WAY(preadv2, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, read_read_only) { WAY(read_read_only, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, read_direct) { SHMEM(read_direct, READS, EPERM, EPERM) };
FIXTURE_VARIANT_ADD(path, aio_pread) { WAY(aio_pread, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, aio_preadv) { WAY(aio_preadv, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, uring_read) { WAY(uring_read, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, uring_readv) { WAY(uring_readv, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, uring_read_fixed) { WAY(uring_read_fixed, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, splice_out) { SHMEM(splice_out, READS, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, splice_out_direct) { SHMEM(splice_out_direct, READS, EPERM, EPERM) };
FIXTURE_VARIANT_ADD(path, uring_splice_out) { SHMEM(uring_splice_out, READS, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, sendfile_to_pipe) { SHMEM(sendfile_to_pipe, READS, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, sendfile_to_socket) { SHMEM(sendfile_to_socket, READS, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, sendfile_to_file) { SHMEM(sendfile_to_file, READS, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, copy_file_range_out) { SHMEM(copy_file_range_out, READS, EPERM, EXDEV) };
FIXTURE_VARIANT_ADD(path, loop_read) { WAY(loop_read, READS, EIO) };
FIXTURE_VARIANT_ADD(path, map_shared) { WAY(map_shared, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, map_shared_read_only) { WAY(map_shared_read_only, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, map_shared_none) { WAY(map_shared_none, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, map_shared_exec) { WAY(map_shared_exec, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, map_shared_populate) { WAY(map_shared_populate, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, map_shared_validate) { WAY(map_shared_validate, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, map_private) { WAY(map_private, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, map_private_none) { WAY(map_private_none, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, map_private_exec) { WAY(map_private_exec, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, map_private_locked) { WAY(map_private_locked, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, map_read_only_descriptor) { WAY(map_read_only_descriptor, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, process_vm_readv) { WAY(process_vm_readv, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, proc_mem) { WAY(proc_mem, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, vmsplice_out) { WAY(vmsplice_out, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, uffd_continue) { WAY(uffd_continue, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, udmabuf) { WAY(udmabuf, READS, EPERM) };
FIXTURE_VARIANT_ADD(path, write) { SHMEM(write, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, pwrite) { SHMEM(pwrite, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, pwrite_into_hole) { SHMEM(pwrite_into_hole, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, writev) { SHMEM(writev, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, pwritev) { SHMEM(pwritev, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, pwritev2) { SHMEM(pwritev2, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, write_direct) { SHMEM(write_direct, WRITES, EPERM, EPERM) };
FIXTURE_VARIANT_ADD(path, write_append) { SHMEM(write_append, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, aio_pwrite) { SHMEM(aio_pwrite, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, aio_pwritev) { SHMEM(aio_pwritev, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, uring_write) { SHMEM(uring_write, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, uring_writev) { SHMEM(uring_writev, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, uring_write_fixed) { SHMEM(uring_write_fixed, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, splice_in) { SHMEM(splice_in, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, vmsplice_in) { SHMEM(vmsplice_in, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, uring_splice_in) { SHMEM(uring_splice_in, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, sendfile_in) { SHMEM(sendfile_in, WRITES, EPERM, EINVAL) };
FIXTURE_VARIANT_ADD(path, copy_file_range_in) { SHMEM(copy_file_range_in, WRITES, EPERM, EXDEV) };
FIXTURE_VARIANT_ADD(path, loop_write) { SHMEM(loop_write, WRITES, EIO, EINVAL) };
FIXTURE_VARIANT_ADD(path, map_shared_write) { WAY(map_shared_write, WRITES, EPERM) };
FIXTURE_VARIANT_ADD(path, uffd_copy) { WAY(uffd_copy, WRITES, EPERM) };

FIXTURE_SETUP(path)
{
	/* A page of the store is copied in at once. */
	self->t.buf = aligned_alloc(PAGE, MAP_LEN);
	self->expected = malloc(LEN);
	ASSERT_NE(NULL, self->t.buf);
	ASSERT_NE(NULL, self->expected);
}

FIXTURE_TEARDOWN(path)
{
	free(self->t.buf);
	free(self->expected);
}

/* All pages but the last. */
static int filled_file(void)
{
	int fd = mfd_filled(0, NPAGES * UNIT);

	if (fd >= 0 && do_fallocate(fd, PUNCH, (NPAGES - 1) * UNIT, UNIT)) {
		close(fd);
		fd = -EIO;
	}
	return fd;
}

static void prepare(struct target *t, enum direction direction)
{
	size_t i;

	if (direction == READS)
		memset(t->buf, UNTOUCHED, LEN);
	else
		for (i = 0; i < LEN; i++)
			t->buf[i] = ~fill_byte(AT + i);
}

/* The way leads somewhere: the bytes really arrive. */
static bool works(struct __test_metadata *_metadata, struct target *t, char *scratch,
		  const FIXTURE_VARIANT(path) * way)
{
	ssize_t ret;

	t->fd = filled_file();
	ASSERT_LE(0, t->fd);
	prepare(t, way->direction);
	ret = way->attempt(t);
	if (t->missing) {
		close(t->fd);
		return false;
	}
	if (ON_HUGETLBFS && way->hugetlb_err) {
		EXPECT_EQ(-way->hugetlb_err, ret)
			TH_LOG("on an ordinary file: %s", ret < 0 ? strerror(-ret) : "works");
	} else {
		EXPECT_EQ((ssize_t)LEN, ret)
			TH_LOG("on an ordinary file: %s", ret < 0 ? strerror(-ret) : "short");
		if (way->direction == READS) {
			EXPECT_EQ(-1, fill_mismatch(t->buf, AT, LEN));
		} else {
			EXPECT_EQ((ssize_t)LEN, pread(t->fd, scratch, LEN, AT));
			EXPECT_EQ(0, memcmp(scratch, t->buf, LEN));
		}
	}
	close(t->fd);
	return true;
}

/*
 * Where hugetlbfs has no method for it, only files that are opened when they
 * are sealed know better than to say so. Between file systems the VFS says no.
 */
static void is_refused(struct __test_metadata *_metadata, struct target *t, char *scratch,
		       const FIXTURE_VARIANT(path) * way, bool opened_before)
{
	struct file_state before;
	ssize_t ret;

	prepare(t, way->direction);
	memcpy(scratch, t->buf, LEN);
	/* Attempts that use the offset of the descriptor set it so. */
	ASSERT_EQ((off_t)AT, lseek(t->fd, AT, SEEK_SET));
	if (way->attempt == try_udmabuf)
		do_add_seals(t->fd, F_SEAL_SHRINK);
	file_state_get(t->fd, &before);
	ret = way->attempt(t);
	if (!ON_HUGETLBFS || ret != -way->hugetlb_err ||
	    (!opened_before && way->hugetlb_err != EXDEV))
		EXPECT_EQ(-way->err, ret)
			TH_LOG("%s", ret < 0 ? strerror(-ret) : "bytes were moved");
	EXPECT_EQ(0, memcmp(scratch, t->buf, LEN))
		TH_LOG("the buffer was written to");
	EXPECT_FALSE(file_state_changed(t->fd, &before));
}

TEST_F(path, born_sealed)
{
	const char *lacking = mfd_missing();

	if (!works(_metadata, &self->t, self->expected, variant))
		SKIP(return, "%s", self->t.missing);
	if (lacking)
		SKIP(return, "%s", lacking);

	self->t.fd = mfd_sealed(MFD_ALLOW_SEALING, NPAGES * UNIT);
	ASSERT_LE(0, self->t.fd);
	ASSERT_EQ(0, do_fallocate(self->t.fd, 0, 0, (NPAGES - 1) * UNIT));
	is_refused(_metadata, &self->t, self->expected, variant, false);
	close(self->t.fd);
}

/* The same on pages that aren't there: neither zeroes nor a new page. */
TEST_F(path, born_sealed_hole)
{
	const char *lacking = mfd_missing();

	if (!works(_metadata, &self->t, self->expected, variant))
		SKIP(return, "%s", self->t.missing);
	if (lacking)
		SKIP(return, "%s", lacking);

	self->t.fd = mfd_sealed(MFD_ALLOW_SEALING, NPAGES * UNIT);
	ASSERT_LE(0, self->t.fd);
	is_refused(_metadata, &self->t, self->expected, variant, false);
	close(self->t.fd);
}

/* Descriptors from before the seal were opened with all file operations. */
TEST_F(path, sealed_later)
{
	const char *lacking = late_seal_missing();

	if (!works(_metadata, &self->t, self->expected, variant))
		SKIP(return, "%s", self->t.missing);
	if (lacking)
		SKIP(return, "%s", lacking);

	self->t.fd = filled_file();
	ASSERT_LE(0, self->t.fd);
	ASSERT_EQ(0, late_seal(self->t.fd));
	is_refused(_metadata, &self->t, self->expected, variant, true);
	close(self->t.fd);
}

TEST_F(path, sealed_later_opened_after)
{
	const char *lacking = late_seal_missing();
	int old;

	if (!works(_metadata, &self->t, self->expected, variant))
		SKIP(return, "%s", self->t.missing);
	if (lacking)
		SKIP(return, "%s", lacking);

	old = filled_file();
	ASSERT_LE(0, old);
	ASSERT_EQ(0, late_seal(old));
	self->t.fd = mfd_reopen(old, O_RDWR);
	ASSERT_LE(0, self->t.fd);
	close(old);
	is_refused(_metadata, &self->t, self->expected, variant, false);
	close(self->t.fd);
}

/* ---- ways that are no read and no write ---- */

/*
 * A file sealed at birth, and one sealed later, where the kernel can do that.
 * Both have all pages but the last.
 */
FIXTURE(file)
{
	int fd;
	struct file_state before;
};

FIXTURE_VARIANT(file)
{
	bool late;
};

FIXTURE_VARIANT_ADD(file, born_sealed)
{
	.late = false,
};

FIXTURE_VARIANT_ADD(file, sealed_later)
{
	.late = true,
};

static int sealed_file(bool late)
{
	int fd, err;

	fd = late ? filled_file() : mfd_sealed(MFD_ALLOW_SEALING, NPAGES * UNIT);
	if (fd < 0)
		return fd;
	err = late ? late_seal(fd) : do_fallocate(fd, 0, 0, (NPAGES - 1) * UNIT);
	if (err) {
		close(fd);
		return err;
	}
	return fd;
}

FIXTURE_SETUP(file)
{
	const char *lacking = variant->late ? late_seal_missing() : mfd_missing();

	if (lacking)
		SKIP(return, "%s", lacking);
	self->fd = sealed_file(variant->late);
	ASSERT_LE(0, self->fd);
	file_state_get(self->fd, &self->before);
	ASSERT_EQ((long long)(NPAGES * UNIT), self->before.s.size);
}

FIXTURE_TEARDOWN(file)
{
	EXPECT_FALSE(file_state_changed(self->fd, &self->before));
	close(self->fd);
}

TEST_F(file, map_all)
{
	static const int kinds[] = { MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE };
	static const int flags[] = {
		0, MAP_POPULATE, MAP_NORESERVE, MAP_LOCKED, MAP_NONBLOCK | MAP_POPULATE, MAP_STACK,
	};
	const struct {
		off_t offset;
		size_t len;
	} range[] = {
		{ 0, UNIT }, { 0, 1 }, { 0, NPAGES * UNIT }, { UNIT, UNIT },
		{ (NPAGES - 1) * UNIT, UNIT }, { NPAGES * UNIT, UNIT }, { 0, 64 * UNIT },
	};
	unsigned int k, f, r;
	int prot;

	for (prot = 0; prot <= (PROT_READ | PROT_WRITE | PROT_EXEC); prot++) {
		for (k = 0; k < ARRAY_SIZE(kinds); k++) {
			for (f = 0; f < ARRAY_SIZE(flags); f++) {
				for (r = 0; r < ARRAY_SIZE(range); r++) {
					void *p = mmap(NULL, range[r].len, prot,
						       kinds[k] | flags[f], self->fd,
						       range[r].offset);

					ASSERT_EQ(MAP_FAILED, p)
						TH_LOG("prot %d flags %x", prot,
						       kinds[k] | flags[f]);
					ASSERT_EQ(EPERM, errno);
				}
			}
		}
	}
}

/* The mapping that was to be replaced survives the refusal. */
TEST_F(file, map_over_another)
{
	char *p, byte = 'x';

	p = mmap(NULL, 2 * MAP_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, p);
	p += -(uintptr_t)p & (UNIT - 1);
	memset(p, byte, MAP_LEN);
	EXPECT_EQ(MAP_FAILED, mmap(p, MAP_LEN, PROT_READ, MAP_SHARED | MAP_FIXED, self->fd, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(MAP_FAILED, mmap(p, MAP_LEN, PROT_READ, MAP_PRIVATE | MAP_FIXED, self->fd, 0));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(byte, p[0]);
	EXPECT_EQ(byte, p[MAP_LEN - 1]);
	munmap(p, MAP_LEN);
}

TEST_F(file, execute)
{
	static char *const none[] = { NULL };
	static char *const argv[] = { (char *)"x", NULL };
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	EXPECT_EQ(-1, syscall(__NR_execveat, self->fd, "", argv, none, AT_EMPTY_PATH));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(-1, execve(path, argv, none));
	EXPECT_EQ(EACCES, errno);

	/* As the interpreter of a script */
	fd = mfd_create(MFD_EXEC);
	ASSERT_LE(0, fd);
	ASSERT_LT(0, dprintf(fd, "#!%s\n", path));
	EXPECT_EQ(-1, syscall(__NR_execveat, fd, "", argv, none, AT_EMPTY_PATH));
	EXPECT_EQ(EACCES, errno);
	close(fd);
}

/*
 * The kernel's own reader, kernel_read(), at the place where root can aim it
 * at any file. It wants a file that nobody can write to.
 */
static int load_module(int writable)
{
	int fd = mfd_reopen(writable, O_RDONLY), err;

	if (fd < 0)
		return fd;
	close(writable);
	err = syscall(__NR_finit_module, fd, "", 0) ? -errno : 0;
	close(fd);
	return err;
}

TEST_F(file, kernel_read)
{
	/* The bytes are read, and are no module. */
	int err = load_module(filled_file());

	if (no_such_call(err))
		SKIP(return, "finit_module() (CONFIG_MODULES)");
	EXPECT_EQ(-ENOEXEC, err);
	EXPECT_EQ(-EPERM, load_module(sealed_file(variant->late)));
}

TEST_F(file, advice)
{
	int advice;

	for (advice = POSIX_FADV_NORMAL; advice <= POSIX_FADV_NOREUSE; advice++) {
		EXPECT_EQ(0, posix_fadvise(self->fd, 0, NPAGES * UNIT, advice));
		EXPECT_EQ(0, posix_fadvise(self->fd, (NPAGES - 1) * UNIT, 0, advice));
	}
	EXPECT_EQ(0, readahead(self->fd, 0, NPAGES * UNIT));
	EXPECT_EQ(0, sync_file_range(self->fd, 0, 0, 7));
	EXPECT_EQ(0, fsync(self->fd));
	EXPECT_EQ(0, fdatasync(self->fd));
}

/* Like st_blocks, it tells which pages there are, and no more. */
TEST_F(file, cachestat)
{
	struct {
		uint64_t off, len;
	} range = { 0, NPAGES * UNIT };
	struct {
		uint64_t cache, dirty, writeback, evicted, recently_evicted;
	} cs;
	int err;

	err = neg_errno(syscall(451, self->fd, &range, &cs, 0));
	if (no_such_call(err))
		SKIP(return, "cachestat() (CONFIG_CACHESTAT_SYSCALL)");
	/* Not of huge pages */
	EXPECT_EQ(ON_HUGETLBFS ? -EOPNOTSUPP : 0, err);
	if (!err)
		EXPECT_EQ(NPAGES - 1, cs.cache);
}

TEST_F(file, not_supported)
{
	struct file_clone_range clone = { .src_fd = self->fd };
	char space[sizeof(struct file_dedupe_range) + sizeof(struct file_dedupe_range_info)] = "";
	struct file_dedupe_range *dedupe = (void *)space;
	char more[sizeof(struct fiemap) + 8 * sizeof(struct fiemap_extent)] = "";
	struct fiemap *fiemap = (void *)more;
	int other = mfd_ordinary(0, NPAGES * UNIT), block = 0, p[2];

	ASSERT_LE(0, other);
	ASSERT_EQ(0, pipe(p));
	EXPECT_EQ(-1, ioctl(other, FICLONE, self->fd));
	EXPECT_EQ(EOPNOTSUPP, errno);
	EXPECT_EQ(-1, ioctl(self->fd, FICLONE, other));
	EXPECT_EQ(EOPNOTSUPP, errno);
	EXPECT_EQ(-1, ioctl(other, FICLONERANGE, &clone));
	EXPECT_EQ(EOPNOTSUPP, errno);

	dedupe->src_length = PAGE;
	dedupe->dest_count = 1;
	dedupe->info[0].dest_fd = other;
	if (!ioctl(self->fd, FIDEDUPERANGE, dedupe))
		EXPECT_GT(0, dedupe->info[0].status);
	EXPECT_EQ(0, dedupe->info[0].bytes_deduped);

	fiemap->fm_length = NPAGES * UNIT;
	fiemap->fm_extent_count = 8;
	EXPECT_EQ(-1, ioctl(self->fd, FS_IOC_FIEMAP, fiemap));
	EXPECT_EQ(EOPNOTSUPP, errno);
	EXPECT_EQ(-1, ioctl(self->fd, FIBMAP, &block));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, tee(self->fd, p[1], PAGE, 0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(0, pipe_level(p[0]));
	EXPECT_EQ(0, blocks_pages(other));
	close(p[0]);
	close(p[1]);
	close(other);
}

/* A file on another file system ends in an error of the VFS. */
TEST_F(file, copy_across_file_systems)
{
	char name[] = "/tmp/inaccessible.XXXXXX";
	off_t from = 0, to = 0;
	int other;

	mkdir("/tmp", 01777);
	other = mkstemp(name);
	ASSERT_LE(0, other);
	unlink(name);
	ASSERT_EQ(0, do_ftruncate(other, PAGE));
	EXPECT_EQ(-1, copy_file_range(self->fd, &from, other, &to, PAGE, 0));
	EXPECT_EQ(EXDEV, errno);
	EXPECT_EQ(-1, copy_file_range(other, &from, self->fd, &to, PAGE, 0));
	EXPECT_EQ(EXDEV, errno);
	EXPECT_EQ(-1, sendfile(other, self->fd, &from, PAGE));
	EXPECT_EQ(ON_HUGETLBFS && variant->late ? EINVAL : EPERM, errno);
	EXPECT_EQ((off_t)PAGE, file_size(other));
	close(other);
}

TEST_F(file, swap_space)
{
	char path[64];
	int err;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	err = neg_errno(swapon(path, 0));
	if (no_such_call(err))
		SKIP(return, "swap (CONFIG_SWAP)");
	EXPECT_EQ(-EINVAL, err);
}

/*
 * Hibernation writes all memory to a disk, and so has to wait until there is
 * no such file.
 */
static const char *hibernation(void)
{
	static char mode[32];

	return knob_read("/sys/power/disk", mode, sizeof(mode)) ? NULL : mode;
}

TEST_F(file, hibernation)
{
	const char *mode = hibernation();
	int i;

	if (!mode)
		SKIP(return, "hibernation (CONFIG_HIBERNATION)");
	/* Then it is not attempted, or this machine might be gone. */
	ASSERT_STREQ("disabled", mode);
	EXPECT_EQ(-EPERM, write_file("/sys/power/state", "disk"));
	EXPECT_FALSE(file_state_changed(self->fd, &self->before));

	/* This file was the reason. */
	close(self->fd);
	for (i = 0; i < 100 && !strcmp(hibernation(), "disabled"); i++)
		usleep(10000);
	EXPECT_STRNE("disabled", hibernation());

	self->fd = sealed_file(variant->late);
	ASSERT_LE(0, self->fd);
	file_state_get(self->fd, &self->before);
	EXPECT_STREQ("disabled", hibernation());
}

/*
 * A breakpoint in the file, set by its path: to run it would take a mapping,
 * to set it takes reading the instruction.
 */
static int uprobe_open(int fd, off_t offset)
{
	struct perf_event_attr attr = { .size = sizeof(attr) };
	char path[64], type[16];

	if (knob_read("/sys/bus/event_source/devices/uprobe/type", type, sizeof(type)))
		return -ENOENT;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", getpid(), fd);
	attr.type = atoi(type);
	attr.uprobe_path = (uintptr_t)path;
	attr.probe_offset = offset;
	fd = syscall(__NR_perf_event_open, &attr, -1, 0, -1, 0);
	return fd < 0 ? -errno : fd;
}

/* Does the breakpoint work in a file that can be mapped? */
static void uprobe_counts(struct __test_metadata *_metadata, int fd, int probe)
{
#ifdef __x86_64__
	const unsigned char code[] = { 0x90, 0xc3 };	/* nop; ret */
	uint64_t count = 0;
	void (*fn)(void);
	cpu_set_t one;
	int i;

	/* The event counts on CPU 0. */
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(one), &one));
	ASSERT_EQ((ssize_t)sizeof(code), pwrite(fd, code, sizeof(code), 0));
	fn = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
	ASSERT_NE(MAP_FAILED, fn);
	for (i = 0; i < 5; i++)
		fn();
	ASSERT_EQ((ssize_t)sizeof(count), read(probe, &count, sizeof(count)));
	EXPECT_EQ(5, count);
	munmap(fn, PAGE);
#endif
}

TEST_F(file, uprobe)
{
	const off_t offset[] = { 0, (NPAGES - 1) * UNIT };
	unsigned int i;
	int fd, probe;

	fd = mfd_create(MFD_EXEC);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, do_ftruncate(fd, PAGE));
	probe = uprobe_open(fd, 0);
	if (probe == -ENOENT || no_such_call(probe))
		SKIP(return, "uprobes (CONFIG_UPROBE_EVENTS, CONFIG_PERF_EVENTS)");
	ASSERT_LE(0, probe);
	uprobe_counts(_metadata, fd, probe);
	close(probe);
	close(fd);

	for (i = 0; i < ARRAY_SIZE(offset); i++) {
		/* hugetlbfs files have never had any. */
		probe = uprobe_open(self->fd, offset[i]);
		EXPECT_EQ(ON_HUGETLBFS ? -EIO : -EPERM, probe);
		close(probe);
	}
}

/* Discarding through a loop device is a hole punch like any other. */
TEST_F(file, loop_discard)
{
	uint64_t range[2] = { 512, PAGE };
	char dev[32];
	int loop;

	loop = loop_attach(self->fd, dev, sizeof(dev));
	if (loop == -ENOENT || loop == -ENODEV || loop == -ENXIO)
		SKIP(return, "loop devices (CONFIG_BLK_DEV_LOOP)");
	/* A kernel that won't attach the file at all is as good. */
	if (loop < 0)
		return;
	EXPECT_NE(0, ioctl(loop, BLKDISCARD, range));
	EXPECT_FALSE(file_state_changed(self->fd, &self->before));
	file_state_get(self->fd, &self->before);
	range[0] = 0;
	range[1] = 512;
	EXPECT_NE(0, ioctl(loop, BLKZEROOUT, range));
	EXPECT_FALSE(file_state_changed(self->fd, &self->before));
	file_state_get(self->fd, &self->before);

	range[0] = UNIT;
	range[1] = UNIT;
	if (!ioctl(loop, BLKDISCARD, range)) {
		EXPECT_EQ(NPAGES - 2, blocks_pages(self->fd));
		EXPECT_EQ((off_t)UNIT, lseek(self->fd, 0, SEEK_HOLE));
		EXPECT_EQ(0, lseek(self->fd, 0, SEEK_SET));
		ASSERT_EQ(0, do_fallocate(self->fd, 0, UNIT, UNIT));
	}
	ioctl(loop, LOOP_CLR_FD, 0);
	close(loop);
}

/* ---- the neighbours are none the worse for it ---- */

/* Zeroes for a part of a page, pages past the size, and data all over */
static void stays_ordinary_hugetlbfs(struct __test_metadata *_metadata, int fd)
{
	char byte = 'x';

	EXPECT_EQ(0, do_fallocate(fd, PUNCH, 1, 2));
	EXPECT_EQ(1, pread(fd, &byte, 1, 2));
	EXPECT_EQ(0, byte);
	EXPECT_EQ(0, do_fallocate(fd, FALLOC_FL_KEEP_SIZE, NPAGES * UNIT + 1, 1));
	EXPECT_EQ(NPAGES, blocks_pages(fd));
	EXPECT_EQ(0, do_ftruncate(fd, UNIT));
	EXPECT_EQ(1, blocks_pages(fd));
	EXPECT_EQ(0, do_ftruncate(fd, 2 * UNIT));
	EXPECT_EQ(UNIT + 1, lseek(fd, UNIT + 1, SEEK_DATA));
	EXPECT_EQ(2 * UNIT, lseek(fd, 0, SEEK_HOLE));
	EXPECT_EQ(0, fchmod(fd, 0755));
	close(fd);
}

TEST(ordinary_files_stay_ordinary)
{
	const char *lacking = mfd_missing();
	int sealed, fd, seals;
	char byte = 0, *p;

	if (lacking)
		SKIP(return, "%s", lacking);
	sealed = sealed_file(false);
	ASSERT_LE(0, sealed);
	fd = filled_file();
	ASSERT_LE(0, fd);
	seals = fcntl(fd, F_GET_SEALS);
	EXPECT_EQ(0, seals & (F_SEAL_INACCESSIBLE | F_SEAL_SEAL));
	EXPECT_EQ(1, pread(fd, &byte, 1, AT));
	EXPECT_EQ(fill_byte(AT), (unsigned char)byte);
	p = mmap(NULL, UNIT, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	EXPECT_EQ(fill_byte(0), (unsigned char)p[0]);
	munmap(p, UNIT);
	if (ON_HUGETLBFS) {
		stays_ordinary_hugetlbfs(_metadata, fd);
		close(sealed);
		return;
	}
	/* Size, unaligned holes and allocation past the size as ever */
	EXPECT_EQ(0, do_ftruncate(fd, 5));
	EXPECT_EQ(0, do_ftruncate(fd, NPAGES * UNIT + 1));
	EXPECT_EQ(0, do_fallocate(fd, 0, 1, NPAGES * UNIT + 7));
	EXPECT_EQ((off_t)(NPAGES * UNIT + 8), file_size(fd));
	EXPECT_EQ(0, do_fallocate(fd, PUNCH, 1, 2));
	/* Pages allocated and not written to are holes, as they always were. */
	EXPECT_EQ(0, do_fallocate(fd, PUNCH, 0, NPAGES * UNIT + 8));
	EXPECT_EQ(0, do_fallocate(fd, 0, 0, PAGE));
	EXPECT_EQ(-1, lseek(fd, 0, SEEK_DATA));
	EXPECT_EQ(ENXIO, errno);
	close(fd);
	close(sealed);
}

STORE_HARNESS_MAIN
