// SPDX-License-Identifier: GPL-2.0
/*
 * Random sequences of everything that can be done with inaccessible memfds and
 * KVM_MEM_PRIVATE slots, against a model in plain memory: which pages of which
 * file are private, what each page holds, who owns a file and who has it open.
 *
 * After each operation what it may have changed is compared, and now and then
 * everything: what guests find, what the host finds in the shared halves, what
 * lseek() says.  A call that has to fail must fail with an error that the ABI
 * gives for it, and change nothing.
 *
 * One number, the seed, decides all.  When the kernel and the model disagree,
 * operations are left out, in fresh state each time, for as long as they still
 * do.  What is left is printed, one operation a line, as -r takes it.
 *
 * Files are made of cells, ranges of pages that are converted as a whole and
 * may be of different sizes.  Three words of a cell stand for its content: the
 * first, the last and one in the middle.
 */
#include <fcntl.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include "private_memfd.h"

/* Of linux/fcntl.h, too. */
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC	0x0020
#endif

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

#define NR_FILES	4
#define NR_VMS		3
#define NR_VCPUS	2
#define BARE_VM		2	/* has no vCPUs: made and killed quickly */
#define NR_SLOTS	6
#define NR_RAMS		4
#define MAX_CELLS	24
#define NR_PLACES	6	/* in the guests' address space */
#define NR_WORDS	NR_PROBES

/* Operations until everything is made anew; between two looks at everything. */
#define EPOCH		12000
#define FULL_CHECK	400

/* A call that takes longer than this, in seconds, hangs. */
#define HANGS		120

/* Nor is the test silent for much longer than this. */
#define PROGRESS	60

/* ------------------------------------------------------------------------ */
/* What can be done */

enum op_kind {
	OP_CREATE, OP_SIZE, OP_FILL, OP_MAP, OP_UNMAP, OP_SEAL, OP_ALLOC, OP_PUNCH, OP_TRY,
	OP_DUP, OP_REOPEN, OP_CLOSE, OP_BIND, OP_UNBIND, OP_KILL, OP_FOREIGN, OP_PREFAULT,
	OP_ATTRIBUTES, OP_GREAD, OP_GWRITE, OP_HREAD, OP_HWRITE, OP_DISCARD, OP_COLLAPSE,
	OP_PROTECT, OP_FORK, OP_EXIT, NR_OPS,
};

#define NR_ARGS		10

static const struct {
	const char *name;
	const char *arg[NR_ARGS];
} op_info[NR_OPS] = {
	[OP_CREATE]	= { "create", { "file", "kind" } },
	[OP_SIZE]	= { "size", { "file", "fd", "cells", "rest" } },
	[OP_FILL]	= { "fill", { "file", "cell" } },
	[OP_MAP]	= { "map", { "file" } },
	[OP_UNMAP]	= { "unmap", { "file" } },
	[OP_SEAL]	= { "seal", { "file", "fd", "what" } },
	[OP_ALLOC]	= { "alloc", { "file", "fd", "cell", "nr", "mode", "rest" } },
	[OP_PUNCH]	= { "punch", { "file", "fd", "cell", "nr", "mode", "rest" } },
	[OP_TRY]	= { "try", { "file", "fd", "what", "cell" } },
	[OP_DUP]	= { "dup", { "file", "fd", "to" } },
	[OP_REOPEN]	= { "reopen", { "file", "fd", "to", "ro" } },
	[OP_CLOSE]	= { "close", { "file", "fd" } },
	[OP_BIND]	= { "bind", { "vm", "slot", "file", "fd", "cell", "nr", "ram", "place",
				      "shift", "bad" } },
	[OP_UNBIND]	= { "unbind", { "vm", "slot", "how" } },
	[OP_KILL]	= { "kill", { "vm" } },
	[OP_FOREIGN]	= { "foreign", { "vm", "slot" } },
	[OP_PREFAULT]	= { "prefault", { "vm", "cpu", "slot", "cell", "nr" } },
	[OP_ATTRIBUTES]	= { "attributes", { "vm", "slot", "cell", "nr", "on" } },
	[OP_GREAD]	= { "gread", { "vm", "cpu", "slot", "cell", "word", "string" } },
	[OP_GWRITE]	= { "gwrite", { "vm", "cpu", "slot", "cell", "word", "string" } },
	[OP_HREAD]	= { "hread", { "ram", "cell", "word" } },
	[OP_HWRITE]	= { "hwrite", { "ram", "cell", "word" } },
	[OP_DISCARD]	= { "discard", { "ram", "cell", "nr" } },
	[OP_COLLAPSE]	= { "collapse", { "ram" } },
	[OP_PROTECT]	= { "protect", { "ram", "cell", "nr", "prot" } },
	[OP_FORK]	= { "fork", { } },
	[OP_EXIT]	= { "exit", { } },
};

struct op {
	uint8_t kind;
	uint8_t arg[NR_ARGS];
};

/* Programs that have found a bug, of the kernel or made on purpose; as -r takes them. */
static const char * const programs[] = {
	/* A page becomes private that the guest has mapped. */
	"create file=0\n"
	"size file=0 cells=5\n"
	"bind file=0 nr=5\n"
	"gwrite slot=0 cell=3\n"
	"alloc file=0 cell=3 nr=1\n",

	/* A hole next to what stays private, in a huge page. */
	"create file=0\n"
	"size file=0 cells=5\n"
	"alloc file=0 nr=5\n"
	"punch file=0 cell=1 nr=1\n",

	/* A slot that fails late must not leave the content to its VM. */
	"create file=0\n"
	"size file=0 cells=2\n"
	"alloc file=0 nr=1\n"
	"bind file=0 nr=1 bad=13\n"
	"bind vm=1 file=0 nr=1\n",
};

/* ------------------------------------------------------------------------ */
/* Shared with the parent, which goes on when a child has died of a disagreement. */

static struct tape {
	struct op op[EPOCH];
	unsigned int nr;		/* operations on it */
	unsigned int at;		/* the one that is executed, or has failed */
	char message[512];
	/* Of all children: calls of the ABI and accesses by guest and host. */
	struct tally {
		uint64_t calls, guest, host;
	} done, checks;
	/* How they went: as they should; refused, as they should; with nothing to do. */
	struct {
		uint64_t done, refused, skipped;
	} kind[NR_OPS];
	uint64_t busy, epochs, steps;
} *tape;

static bool checking;

static struct tally *tally(void)
{
	return checking ? &tape->checks : &tape->done;
}

static void __noreturn __printf(1, 2) disagree(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(tape->message, sizeof(tape->message), fmt, ap);
	va_end(ap);
	_exit(1);
}

#define agree(cond, fmt, ...)				\
do {							\
	if (!(cond))					\
		disagree(fmt, ##__VA_ARGS__);		\
} while (0)

/* ------------------------------------------------------------------------ */
/* Random numbers: those of the sequence, and those that say where to look. */

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static uint64_t gen_state, look_state;

static unsigned int rnd(unsigned int n)
{
	return next_random(&gen_state) % n;
}

static bool one_in(unsigned int n)
{
	return !rnd(n);
}

/* In a program that is run again nothing is left to chance. */
static bool thorough;

static bool look(unsigned int n)
{
	return thorough || !(next_random(&look_state) % n);
}

/* ------------------------------------------------------------------------ */
/* Cells */

static int nr_cells;
static uint64_t cell_at[MAX_CELLS + 4];	/* and a few that are past every file */

static void cells_init(void)
{
	/* In pages: small ones at the edges of huge pages, others in between. */
	static const uint16_t small[] = {
		1, 2, 3, 4, 5, 6, 7, 8, 504, 505, 506, 507, 508, 509, 510, 511, 512, 513, 514, 515,
	};
	static const uint16_t huge[] = {
		1, 3, 64, 255, 256, 448, 511, 512, 513, 576, 767, 768, 769, 1022, 1023, 1024,
	};
	int i;

	if (backing_is_hugetlb()) {
		nr_cells = 5;
		for (i = 0; i <= nr_cells; i++)
			cell_at[i] = i * UNIT;
	} else {
		const uint16_t *pages = backing_is_huge() ? huge : small;

		nr_cells = backing_is_huge() ? ARRAY_SIZE(huge) : ARRAY_SIZE(small);
		for (i = 0; i < nr_cells; i++)
			cell_at[i + 1] = pages[i] * PAGE_SIZE;
	}
	for (i = nr_cells + 1; i < ARRAY_SIZE(cell_at); i++)
		cell_at[i] = cell_at[i - 1] + UNIT;
}

static uint64_t cell_size(int cell)
{
	return cell_at[cell + 1] - cell_at[cell];
}

/* Where a word of a cell is, from the start of what is made of cells. */
static uint64_t word_at(int cell, int word)
{
	return cell_at[cell] + (uint64_t)probe(NULL, cell_size(cell), word);
}

/* ------------------------------------------------------------------------ */
/* The model */

/* Whose file descriptors they are. */
enum { FD_A, FD_B, FD_PEER, FD_FLIGHT, NR_FDS };

struct mfile {
	int refs;		/* descriptors, slots and mappings */
	bool sealed;
	bool late;		/* with content that it had before */
	unsigned int seals;
	int cells;		/* its size, or 0 */
	int binds;
	uint64_t owner;
	bool private[MAX_CELLS];	/* or written, before it is sealed */
	uint64_t word[MAX_CELLS][NR_WORDS];
};

static struct mfile mfiles[32];

static struct {
	struct mfile *file;
	struct {
		int fd;		/* -1 if there is none; that of the process that has it */
		bool ro;
	} h[NR_FDS];
	int flight[2];		/* the sockets between which FD_FLIGHT is */
	void *map;
} names[NR_FILES];

struct mslot {
	struct mfile *file;	/* or NULL; the rest stays as it was */
	int cell, nr, ram;
	uint64_t gpa;
};

static struct mvm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu[NR_VCPUS];
	struct worklist *list[NR_VCPUS];
	uint64_t id;
	struct mslot slot[NR_SLOTS];
} vms[NR_VMS];

/* The shared halves: any slot can have any of them. */
static struct {
	void *hva;
	int prot[MAX_CELLS];
	uint64_t word[MAX_CELLS][NR_WORDS];
} rams[NR_RAMS];

static uint64_t last_value, last_owner;

static uint64_t new_value(void)
{
	return ++last_value * 0x100000001;	/* both halves of it tell */
}

static bool is_private(const struct mfile *f, int cell)
{
	return f->private[cell];
}

static bool is_empty(const struct mfile *f)
{
	int c;

	for (c = 0; c < f->cells; c++)
		if (is_private(f, c))
			return false;
	return true;
}

/* The rule of ownership. */
static void disown(struct mfile *f)
{
	if (!f->binds && is_empty(f))
		f->owner = 0;
}

static struct mfile *mfile_new(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(mfiles); i++) {
		if (!mfiles[i].refs) {
			memset(&mfiles[i], 0, sizeof(mfiles[i]));
			return &mfiles[i];
		}
	}
	TEST_FAIL("Too many files");
}

static struct mslot *slot_of_gpa(struct mvm *v, uint64_t gpa, uint64_t size)
{
	int i;

	for (i = 0; i < NR_SLOTS; i++) {
		struct mslot *s = &v->slot[i];

		if (s->file && gpa < s->gpa + cell_at[s->cell + s->nr] - cell_at[s->cell] &&
		    gpa + size > s->gpa)
			return s;
	}
	return NULL;
}

static uint64_t slot_gpa(const struct mslot *s, int cell, int word)
{
	return s->gpa + word_at(cell, word) - cell_at[s->cell];
}

static void slot_gone(struct mslot *s)
{
	struct mfile *f = s->file;

	s->file = NULL;
	f->binds--;
	f->refs--;
	disown(f);
}

/* What the calls under test may say, in the order in which they were found. */
static int wanted[8], nr_wanted;
static bool refused;

static void want(bool cond, int error)
{
	if (cond)
		wanted[nr_wanted++] = error;
}

/* Returns whether it has succeeded, and should have. */
static bool outcome(const char *what, int64_t ret, int error)
{
	int i, nr = nr_wanted;

	nr_wanted = 0;
	tally()->calls++;
	if (ret >= 0) {
		agree(!nr, "%s succeeds, where %s is due", what, strerror(wanted[0]));
		return true;
	}
	agree(nr, "%s fails with %s", what, strerror(error));
	for (i = 0; i < nr; i++)
		if (wanted[i] == error) {
			refused = true;
			return false;
		}
	disagree("%s fails with %s, not with %s", what, strerror(error), strerror(wanted[0]));
}

/* ------------------------------------------------------------------------ */
/* Calls on files, by this process or by another one that has the descriptor */

enum call_kind {
	CALL_FALLOCATE, CALL_FTRUNCATE, CALL_LSEEK, CALL_ADD_SEALS, CALL_GET_SEALS, CALL_BLOCKS,
	CALL_TRY, CALL_REOPEN, CALL_CLOSE, CALL_REGION, CALL_RECEIVE, CALL_SEND, CALL_EXIT,
};

struct call {
	enum call_kind kind;
	int fd;
	uint64_t arg[4];
};

struct result {
	int64_t ret;
	int error;
};

static void send_msg(int sock, const void *data, size_t len, int fd)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct iovec iov = { .iov_base = (void *)data, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		struct cmsghdr *cmsg;

		msg.msg_control = control.buf;
		msg.msg_controllen = sizeof(control.buf);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	}
	TEST_ASSERT(sendmsg(sock, &msg, 0) == len, "sendmsg() failed: %s", strerror(errno));
}

/* Returns false if the other end is closed; *fd is -1 if none has come along. */
static bool receive_msg(int sock, void *data, size_t len, int *fd)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = data, .iov_len = len };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	ssize_t r = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	*fd = -1;
	if (r > 0 && cmsg)
		memcpy(fd, CMSG_DATA(cmsg), sizeof(int));
	return r == len;
}

static int reopen(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

/* Ways to the content, of which there must be none. */
enum {
	TRY_READ, TRY_WRITE, TRY_PREAD, TRY_PWRITE, TRY_MMAP, TRY_MMAP_SHARED, TRY_SPLICE,
	TRY_SPLICE_IN, TRY_SENDFILE, TRY_COPY, TRY_PREADV, NR_TRIES,
};

static int64_t call_try(int fd, int what, uint64_t offset)
{
	static uint64_t buf[512], untouched[512];
	struct iovec iov = { .iov_base = buf, .iov_len = sizeof(buf) };
	loff_t pos = offset, zero = 0;
	int64_t r = -1;
	int other[2];
	void *p;

	memset(buf, 0x5e, sizeof(buf));
	memset(untouched, 0x5e, sizeof(untouched));
	switch (what) {
	case TRY_READ:
		lseek(fd, offset, SEEK_SET);
		r = read(fd, buf, sizeof(buf));
		break;
	case TRY_WRITE:
		lseek(fd, offset, SEEK_SET);
		r = write(fd, buf, sizeof(buf));
		break;
	case TRY_PREAD:
		r = pread(fd, buf, sizeof(buf), offset);
		break;
	case TRY_PWRITE:
		r = pwrite(fd, buf, sizeof(buf), offset);
		break;
	case TRY_PREADV:
		r = preadv(fd, &iov, 1, offset);
		break;
	case TRY_MMAP:
	case TRY_MMAP_SHARED:
		p = mmap(NULL, UNIT, PROT_READ | (what == TRY_MMAP_SHARED ? PROT_WRITE : 0),
			 what == TRY_MMAP_SHARED ? MAP_SHARED : MAP_PRIVATE, fd,
			 offset & ~(UNIT - 1));
		if (p != MAP_FAILED) {
			munmap(p, UNIT);
			r = 0;
		}
		break;
	case TRY_SPLICE:
	case TRY_SPLICE_IN:
		if (pipe(other))
			return -1;
		if (what == TRY_SPLICE) {
			r = splice(fd, &pos, other[1], NULL, sizeof(buf), 0);
		} else {
			if (write(other[1], buf, sizeof(buf)) == sizeof(buf))
				r = splice(other[0], NULL, fd, &pos, sizeof(buf), 0);
		}
		close(other[0]);
		close(other[1]);
		break;
	case TRY_SENDFILE:
	case TRY_COPY:
		other[0] = memfd_create("copy", MFD_CLOEXEC);
		if (what == TRY_SENDFILE)
			r = sendfile(other[0], fd, &pos, sizeof(buf));
		else
			r = syscall(__NR_copy_file_range, fd, &pos, other[0], &zero, sizeof(buf),
				    0);
		close(other[0]);
		break;
	}
	/* However it ends, nothing may have arrived. */
	if (memcmp(buf, untouched, sizeof(buf)))
		return 1;
	return r;
}

static struct result call_here(const struct call *call)
{
	const uint64_t *arg = call->arg;
	struct result res = {};
	struct stat st;

	errno = 0;
	switch (call->kind) {
	case CALL_FALLOCATE:
		res.ret = fallocate(call->fd, arg[0], arg[1], arg[2]);
		break;
	case CALL_FTRUNCATE:
		res.ret = ftruncate(call->fd, arg[0]);
		break;
	case CALL_LSEEK:
		res.ret = lseek(call->fd, arg[0], arg[1]);
		break;
	case CALL_ADD_SEALS:
		res.ret = fcntl(call->fd, F_ADD_SEALS, arg[0]);
		break;
	case CALL_GET_SEALS:
		res.ret = fcntl(call->fd, F_GET_SEALS);
		break;
	case CALL_BLOCKS:
		res.ret = fstat(call->fd, &st) ?: (int64_t)st.st_blocks * 512;
		break;
	case CALL_TRY:
		res.ret = call_try(call->fd, arg[0], arg[1]);
		break;
	case CALL_REOPEN:
		res.ret = reopen(call->fd, arg[0]);
		break;
	case CALL_CLOSE:
		res.ret = close(call->fd);
		break;
	case CALL_REGION: {
		const struct kvm_userspace_memory_region2 region = {
			.slot = arg[0],
			.memory_size = arg[1],
			.guest_phys_addr = PRIVATE_GPA,
		};

		res.ret = ioctl(call->fd, KVM_SET_USER_MEMORY_REGION2, &region);
		break;
	}
	default:
		TEST_FAIL("Call %d", call->kind);
	}
	res.error = errno;
	return res;
}

/* The other process: it has descriptors of files, but no VM. */
static int peer_sock = -1;
static pid_t peer_pid;

static void __noreturn peer_main(int sock)
{
	struct result res;
	struct call call;
	int fd;

	while (receive_msg(sock, &call, sizeof(call), &fd)) {
		int send = -1;

		switch (call.kind) {
		case CALL_RECEIVE:
			res = (struct result){ .ret = fd };
			break;
		case CALL_SEND:
			res = (struct result){};
			send = call.fd;
			break;
		case CALL_EXIT:
			/* With all its descriptors; a successor has none. */
			fd = fork();
			if (fd)
				_exit(0);
			if (sock > 3)
				close_range(3, sock - 1, 0);
			close_range(sock + 1, ~0u, 0);
			res = (struct result){ .ret = getpid() };
			break;
		default:
			res = call_here(&call);
		}
		send_msg(sock, &res, sizeof(res), send);
	}
	_exit(0);
}

/* Before there are VMs: a process that has vCPUs mapped keeps them alive. */
static void peer_start(void)
{
	int sock[2];

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	TEST_ASSERT(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock),
		    "socketpair() failed: %s", strerror(errno));
	peer_pid = fork();
	TEST_ASSERT(peer_pid >= 0, "fork() failed: %s", strerror(errno));
	if (!peer_pid) {
		close(sock[0]);
		peer_main(sock[1]);
	}
	close(sock[1]);
	peer_sock = sock[0];
}

static struct result peer_call(const struct call *call, int send, int *fd)
{
	struct result res;
	int none;

	send_msg(peer_sock, call, sizeof(*call), send);
	TEST_ASSERT(receive_msg(peer_sock, &res, sizeof(res), fd ?: &none), "The peer is gone");
	return res;
}

static struct result call_by(int who, const struct call *call)
{
	return who == FD_PEER ? peer_call(call, -1, NULL) : call_here(call);
}

#define do_call(name, who, _kind, args...)				\
({									\
	const int __who = who;						\
	const struct call __call = {					\
		.kind = _kind,						\
		.fd = names[name].h[__who].fd,				\
		.arg = { args },					\
	};								\
									\
	call_by(__who, &__call);					\
})

/* ------------------------------------------------------------------------ */
/* Guests: each vCPU works through a list of accesses without an exit. */

enum access { READ, WRITE, OUTS, INS };
enum effect { VALUE, HOLE, MMIO };	/* what an access ends in */

#define QUEUE		96
#define PORT_DONE	0x41
#define PORT_DATA	0x44
#define MMIO_VALUE	0x1010101010101010ul

struct worklist {
	uint64_t nr, at;
	struct {
		uint64_t how;
		uint64_t gva;
		uint64_t value;
	} access[QUEUE];
};

static void guest_code(struct worklist *list)
{
	uint64_t i, gva, value;

	for (;;) {
		asm volatile("outb %%al, %%dx" : : "a"(0), "d"(PORT_DONE));
		for (i = 0; i < list->nr; i++) {
			WRITE_ONCE(list->at, i);
			gva = list->access[i].gva;
			value = list->access[i].value;
			/* Which the host may skip, see skip_access(). */
			switch (list->access[i].how) {
			case READ:
				asm volatile("movq (%%rdi), %%rax"
					     : "=a"(value) : "D"(gva) : "memory");
				break;
			case WRITE:
				asm volatile("movq %%rax, (%%rdi)"
					     : : "a"(value), "D"(gva) : "memory");
				break;
			case OUTS:	/* KVM reads */
				asm volatile("outsl" : "+S"(gva) : "d"(PORT_DATA) : "memory");
				break;
			case INS:	/* KVM writes */
				asm volatile("insl" : "+D"(gva) : "d"(PORT_DATA) : "memory");
				break;
			}
			WRITE_ONCE(list->access[i].value, value);
		}
	}
}

static struct pending {
	unsigned int step;
	enum access how;
	enum effect effect;
	bool seen;		/* of a hole, MMIO, or a string access */
	uint64_t gpa;
	uint64_t value;		/* expected, or written */
	int slot, cell, word;
} pending[QUEUE];

static int nr_pending, pending_vm, pending_cpu;

static const char *access_text(const struct pending *p)
{
	static const char * const names[] = { "reading", "writing", "outs from", "ins to" };
	static char text[128];

	snprintf(text, sizeof(text), "vm %d cpu %d %s word %d of cell %d by slot %d (gpa %#lx)",
		 pending_vm, pending_cpu, names[p->how], p->word, p->cell, p->slot, p->gpa);
	return text;
}

static void skip_access(struct kvm_run *run, const struct pending *p)
{
	run->s.regs.regs.rip += p->how == READ || p->how == WRITE ? 3 : 1;
	run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
}

static void handle_exit(struct kvm_run *run, int r, int error, struct pending *p)
{
	if (r) {
		agree(error == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT,
		      "%s: KVM_RUN fails with %s, exit %s", access_text(p), strerror(error),
		      exit_reason_str(run->exit_reason));
		agree(p->effect == HOLE, "%s: exit with KVM_EXIT_MEMORY_FAULT", access_text(p));
		agree(run->memory_fault.flags == KVM_MEMORY_EXIT_FLAG_PRIVATE &&
		      run->memory_fault.gpa == (p->gpa & PAGE_MASK) &&
		      run->memory_fault.size == PAGE_SIZE,
		      "%s: memory fault with flags %#llx, gpa %#llx, size %#llx", access_text(p),
		      run->memory_fault.flags, run->memory_fault.gpa, run->memory_fault.size);
		p->seen = true;
		skip_access(run, p);
		return;
	}

	if (run->exit_reason == KVM_EXIT_MMIO) {
		agree(p->effect == MMIO, "%s: exit for MMIO", access_text(p));
		agree(run->mmio.phys_addr == p->gpa && run->mmio.len == 8 &&
		      run->mmio.is_write == (p->how == WRITE),
		      "%s: MMIO at %#llx, %u bytes, write %u", access_text(p),
		      run->mmio.phys_addr, run->mmio.len, run->mmio.is_write);
		if (p->how == READ)
			memcpy(run->mmio.data, &p->value, 8);
		else
			agree(!memcmp(run->mmio.data, &p->value, 8), "%s: wrong data",
			      access_text(p));
		p->seen = true;
		return;
	}

	if (run->exit_reason == KVM_EXIT_IO && run->io.port == PORT_DATA && p->how >= OUTS) {
		uint32_t *data = (void *)run + run->io.data_offset;

		agree(run->io.size == 4 && run->io.count == 1 &&
		      run->io.direction == (p->how == OUTS ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN),
		      "%s: odd exit", access_text(p));
		if (p->how == INS) {
			*data = p->value;
			p->seen = true;
			return;
		}
		agree(p->effect == VALUE, "%s: reads %#x from a hole", access_text(p), *data);
		agree(*data == (uint32_t)p->value, "%s: %#x, not %#x", access_text(p), *data,
		      (uint32_t)p->value);
		p->seen = true;
		return;
	}

	disagree("%s: exit %s", access_text(p), exit_reason_str(run->exit_reason));
}

/* Let the guest do what is waiting, and compare. */
static void flush(void)
{
	struct worklist *list = vms[pending_vm].list[pending_cpu];
	struct kvm_vcpu *vcpu = vms[pending_vm].vcpu[pending_cpu];
	unsigned int step = tape->at;
	struct kvm_run *run;
	int i, r, error;

	if (!nr_pending)
		return;

	run = vcpu->run;
	list->nr = nr_pending;
	for (i = 0; i < nr_pending; i++) {
		list->access[i].how = pending[i].how;
		list->access[i].gva = pending[i].gpa;
		list->access[i].value = pending[i].value;
	}
	WRITE_ONCE(list->at, 0);
	for (;;) {
		run->kvm_valid_regs = KVM_SYNC_X86_REGS;
		r = _vcpu_run(vcpu);
		error = errno;
		if (!r && run->exit_reason == KVM_EXIT_IO && run->io.port == PORT_DONE)
			break;
		i = READ_ONCE(list->at);
		tape->at = pending[i].step;
		handle_exit(run, r, error, &pending[i]);
	}

	for (i = 0; i < nr_pending; i++) {
		struct pending *p = &pending[i];

		tape->at = p->step;
		agree(p->seen || (p->effect == VALUE && p->how < OUTS), "%s: no exit",
		      access_text(p));
		if (p->how == READ && p->effect != HOLE)
			agree(list->access[i].value == p->value, "%s: %#lx, not %#lx",
			      access_text(p), list->access[i].value, p->value);
	}
	tape->at = step;
	nr_pending = 0;
}

static struct mvm *get_vm(int nr)
{
	struct mvm *v = &vms[nr];
	const uint64_t size = align_up(NR_PLACES * (align_up(cell_at[nr_cells], SZ_2M) + SZ_2M),
				       SZ_2M);
	vm_vaddr_t gva;
	int i;

	if (v->vm)
		return v;

	memset(v->slot, 0, sizeof(v->slot));
	v->id = ++last_owner;
	if (nr == BARE_VM) {
		v->vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
		return v;
	}

	v->vm = vm_create_private(NR_VCPUS, guest_code, v->vcpu);
	virt_map_level(v->vm, PRIVATE_GPA, PRIVATE_GPA, size, PG_LEVEL_2M);
	for (i = 0; i < NR_VCPUS; i++) {
		gva = vm_vaddr_alloc(v->vm, sizeof(struct worklist), KVM_UTIL_MIN_VADDR);
		v->list[i] = addr_gva2hva(v->vm, gva);
		vcpu_args_set(v->vcpu[i], 1, gva);
		vcpu_run(v->vcpu[i]);
	}
	return v;
}

/* Which word of the model a guest gets at, or NULL and why. */
static uint64_t *guest_word(struct mslot *s, int cell, int word, bool write, enum effect *effect)
{
	int prot = rams[s->ram].prot[cell];

	*effect = VALUE;
	if (is_private(s->file, cell))
		return &s->file->word[cell][word];
	if (prot & (write ? PROT_WRITE : PROT_READ))
		return &rams[s->ram].word[cell][word];
	*effect = HOLE;
	return NULL;
}

/* Where a gpa has been that is not in this slot any more. */
static bool find_word(struct mslot *s, uint64_t gpa, int *cell, int *word)
{
	for (*cell = s->cell; *cell < s->cell + s->nr; ++*cell)
		for (*word = 0; *word < NR_WORDS; ++*word)
			if (slot_gpa(s, *cell, *word) == gpa)
				return true;
	return false;
}

/* Returns whether the model knows what will happen. */
static bool guest_access(int vm, int cpu, int slot, int cell, int word, enum access how)
{
	struct mvm *v = &vms[vm];
	struct mslot *s = &v->slot[slot];
	enum effect effect = MMIO;
	uint64_t gpa, *p = NULL;
	uint64_t value;

	if (!v->vm || !v->vcpu[cpu] || cell < s->cell || cell >= s->cell + s->nr)
		return false;

	gpa = slot_gpa(s, cell, word);
	if (!s->file) {
		s = slot_of_gpa(v, gpa, 8);
		if (s && !find_word(s, gpa, &cell, &word))
			return false;
		if (!s && how >= OUTS)
			return false;
	}
	if (s)
		p = guest_word(s, cell, word, how == WRITE || how == INS, &effect);
	/*
	 * What the port gives is kept if there is a hole, and the instruction
	 * is completed when the vCPU runs again: it can't be skipped.
	 */
	if (!p && how == INS)
		return false;

	if (nr_pending == QUEUE || pending_vm != vm || pending_cpu != cpu)
		flush();
	pending_vm = vm;
	pending_cpu = cpu;

	if (how == WRITE || how == INS)
		value = new_value();
	else
		value = p ? *p : MMIO_VALUE;
	if (p && how == WRITE)
		*p = value;
	else if (p && how == INS)
		*p = (*p & ~0xfffffffful) | (value & 0xffffffff);

	pending[nr_pending++] = (struct pending){
		.step = tape->at,
		.how = how,
		.effect = effect,
		.gpa = gpa,
		.value = value,
		.slot = slot,
		.cell = cell,
		.word = word,
	};
	tally()->guest++;
	return true;
}

/* ------------------------------------------------------------------------ */
/* Comparing */

static uint64_t *ram_word(int ram, int cell, int word)
{
	return rams[ram].hva + word_at(cell, word);
}

static void check_ram_word(int ram, int cell, int word)
{
	uint64_t value;

	if (!(rams[ram].prot[cell] & PROT_READ))
		return;
	value = READ_ONCE(*ram_word(ram, cell, word));
	tally()->host++;
	agree(value == rams[ram].word[cell][word],
	      "the host finds %#lx, not %#lx, in word %d of cell %d of ram %d",
	      value, rams[ram].word[cell][word], word, cell, ram);
}

/* As seen by the guest, in whichever half they are, and what is in the other. */
static void check_cells(int vm, int slot, int first, int nr)
{
	struct mslot *s = &vms[vm].slot[slot];
	const int end = min(first + nr, s->cell + s->nr);
	int only = next_random(&look_state) % NR_VCPUS, word;
	int cpu, c, w;

	first = max(first, s->cell);
	for (cpu = 0; cpu < NR_VCPUS; cpu++) {
		/* Where there is no slot any more, or where it comes to nothing, one is enough. */
		for (c = first; c < end && (thorough || cpu == only); c++) {
			if (!s->file && !look(8))
				continue;
			word = next_random(&look_state) % NR_WORDS;
			for (w = 0; w < NR_WORDS; w++) {
				if (!thorough && w != word)
					continue;
				guest_access(vm, cpu, slot, c, w, READ);
				check_ram_word(s->ram, c, w);
			}
		}
	}
}

/* What lseek() says about a place in a file. */
static void check_seek(int name, int who, int cell, uint64_t offset)
{
	struct mfile *f = names[name].file;
	struct result res;
	int whence;

	for (whence = SEEK_DATA; whence <= SEEK_HOLE; whence++) {
		const char *text = whence == SEEK_DATA ? "SEEK_DATA" : "SEEK_HOLE";
		int c = cell;
		int64_t expect;

		while (c < f->cells && is_private(f, c) != (whence == SEEK_DATA))
			c++;
		expect = cell_at[c] + (c == cell ? offset : 0);
		res = do_call(name, who, CALL_LSEEK, cell_at[cell] + offset, whence);
		tally()->calls++;
		if (cell >= f->cells || (c >= f->cells && whence == SEEK_DATA))
			agree(res.ret == -1 && res.error == ENXIO,
			      "%s from cell %d + %#lx of file %d: %ld (%s), not ENXIO", text, cell,
			      offset, name, res.ret, strerror(res.error));
		else
			agree(res.ret == expect,
			      "%s from cell %d + %#lx of file %d: %#lx, not %#lx", text, cell,
			      offset, name, res.ret, expect);
	}
}

static int any_fd(int name)
{
	int who;

	for (who = FD_A; who <= FD_B; who++)
		if (names[name].h[who].fd >= 0)
			return who;
	return -1;
}

static int name_of(struct mfile *f)
{
	int i;

	for (i = 0; i < NR_FILES; i++)
		if (names[i].file == f)
			return i;
	return -1;
}

static void check_seeks(struct mfile *f, int first, int last)
{
	int name = name_of(f), who = name < 0 ? -1 : any_fd(name), c;

	if (who < 0 || !f->sealed)
		return;
	for (c = first; c <= last; c++)
		if (c == first || c == last || look(4))
			check_seek(name, who, c, look(2) ? 0 : cell_size(c) - 1);
}

static void check_file(int name)
{
	struct mfile *f = names[name].file;
	int who = any_fd(name), c;
	const bool before = checking;
	uint64_t expect = 0;
	struct result res;

	if (who < 0)
		return;
	checking = true;
	res = do_call(name, who, CALL_GET_SEALS);
	agree(res.ret == f->seals, "seals of file %d: %#lx, not %#x", name, res.ret, f->seals);
	tally()->calls++;
	if (!f->sealed)
		goto out;

	for (c = 0; c <= f->cells; c++)
		check_seek(name, who, c, 0);
	for (c = 0; c < f->cells; c++)
		expect += is_private(f, c) ? cell_size(c) : 0;
	res = do_call(name, who, CALL_BLOCKS);
	agree(res.ret == expect, "blocks of file %d: %#lx, not %#lx", name, res.ret, expect);
	tally()->calls++;
out:
	checking = before;
}

static void check_all(void)
{
	bool before = thorough;
	int i, j, c, w;

	flush();
	checking = true;
	thorough = true;
	for (i = 0; i < NR_FILES; i++)
		if (names[i].file)
			check_file(i);
	for (i = 0; i < NR_VMS; i++) {
		for (j = 0; j < NR_SLOTS; j++)
			if (vms[i].slot[j].file || before)
				check_cells(i, j, 0, nr_cells);
	}
	for (i = 0; i < NR_RAMS; i++)
		for (c = 0; c < nr_cells; c++)
			for (w = 0; w < NR_WORDS; w++)
				check_ram_word(i, c, w);
	flush();
	thorough = before;
	checking = false;
}

/* Cells that an operation was about, with their neighbours. */
static void check_file_cells(struct mfile *f, int first, int nr)
{
	int i, j;

	first = max(first - 1, 0);
	nr = min(nr + 2, nr_cells - first);
	checking = true;
	check_seeks(f, first, first + nr);
	for (i = 0; i < NR_VMS; i++) {
		for (j = 0; j < NR_SLOTS; j++)
			if (vms[i].slot[j].file == f)
				check_cells(i, j, first, nr);
	}
	flush();
	checking = false;
}

static void check_ram_cells(int ram, int first, int nr)
{
	int i, j, c, w;

	checking = true;
	for (c = first; c < first + nr && c < nr_cells; c++)
		for (w = 0; w < NR_WORDS; w++)
			check_ram_word(ram, c, w);
	for (i = 0; i < NR_VMS; i++)
		for (j = 0; j < NR_SLOTS; j++)
			if (vms[i].slot[j].file && vms[i].slot[j].ram == ram)
				check_cells(i, j, first, nr);
	flush();
	checking = false;
}

static void check_slot(int vm, int slot)
{
	checking = true;
	check_cells(vm, slot, 0, nr_cells);
	flush();
	checking = false;
}

/* ------------------------------------------------------------------------ */
/* Executing: each returns whether there was anything to be done. */

static bool name_exists(int name, int who)
{
	return name < NR_FILES && who < NR_FDS && names[name].file;
}

/* Descriptors in flight can't be used. */
static int usable(int who)
{
	return who == FD_FLIGHT ? FD_A : who;
}

static void put_name(int name)
{
	names[name].file->refs--;
	for (int who = 0; who < NR_FDS; who++)
		if (names[name].h[who].fd >= 0)
			return;
	if (!names[name].map)
		names[name].file = NULL;
}

static bool do_create(const struct op *op)
{
	const int name = op->arg[0], kind = op->arg[1];
	static const unsigned int flags[] = {
		MFD_INACCESSIBLE, MFD_INACCESSIBLE | MFD_ALLOW_SEALING,
		MFD_INACCESSIBLE | MFD_NOEXEC_SEAL, MFD_ALLOW_SEALING,
		MFD_INACCESSIBLE | MFD_EXEC, MFD_INACCESSIBLE | MFD_EXEC | MFD_ALLOW_SEALING,
	};
	struct mfile *f;
	int fd, i;

	if (name >= NR_FILES || kind >= ARRAY_SIZE(flags) || names[name].file)
		return false;

	fd = memfd_create("model", MFD_CLOEXEC | private_backing()->memfd_flags | flags[kind]);
	want(kind >= 4, EINVAL);
	if (!outcome("memfd_create()", fd, errno))
		return true;

	f = mfile_new();
	f->sealed = kind != 3;
	f->seals = f->sealed ? F_SEAL_INACCESSIBLE | F_SEAL_EXEC : 0;
	if (kind == 0 || kind == 2)
		f->seals |= F_SEAL_SEAL;
	f->refs = 1;
	names[name].file = f;
	for (i = 0; i < NR_FDS; i++)
		names[name].h[i].fd = -1;
	names[name].h[FD_A].fd = fd;
	names[name].h[FD_A].ro = false;
	check_file(name);
	return true;
}

static bool do_size(const struct op *op)
{
	const int name = op->arg[0], cells = op->arg[2], rest = op->arg[3];
	int who = op->arg[1];
	struct mfile *f;
	struct result res;
	bool same, ro;

	who = usable(who);
	if (!name_exists(name, who) || cells > nr_cells)
		return false;
	f = names[name].file;
	if (!f->sealed && (f->cells || rest || names[name].map))
		return false;

	ro = names[name].h[who].ro;
	same = cells == f->cells && !rest;
	want(names[name].h[who].fd < 0, EBADF);
	want(ro, EINVAL);
	want(f->cells && !same, EPERM);
	want(rest && !f->cells, EINVAL);
	want(f->seals & F_SEAL_GROW && !same && cell_at[cells] + rest > cell_at[f->cells], EPERM);
	want(f->seals & F_SEAL_SHRINK && cells < f->cells, EPERM);
	res = do_call(name, who, CALL_FTRUNCATE, cell_at[cells] + (rest ? 512 : 0));
	if (outcome("ftruncate()", res.ret, res.error))
		f->cells = cells;
	check_file_cells(f, 0, f->cells);
	return true;
}

static bool do_fill(const struct op *op)
{
	const int name = op->arg[0], cell = op->arg[1];
	struct mfile *f;
	char *buf;
	int w;

	if (!name_exists(name, FD_A))
		return false;
	f = names[name].file;
	if (f->sealed || f->seals & F_SEAL_WRITE || cell >= f->cells ||
	    names[name].h[FD_A].fd < 0 || names[name].h[FD_A].ro)
		return false;

	for (w = 0; w < NR_WORDS; w++)
		f->word[cell][w] = new_value();
	f->private[cell] = true;
	if (backing_is_hugetlb()) {
		buf = mmap(NULL, cell_size(cell), PROT_READ | PROT_WRITE, MAP_SHARED,
			   names[name].h[FD_A].fd, cell_at[cell]);
		outcome("mmap()", buf == MAP_FAILED ? -1 : 0, errno);
	} else {
		buf = calloc(1, cell_size(cell));
	}
	for (w = 0; w < NR_WORDS; w++)
		WRITE_ONCE(*probe(buf, cell_size(cell), w), f->word[cell][w]);
	if (backing_is_hugetlb()) {
		tally()->host += NR_WORDS;
		munmap(buf, cell_size(cell));
	} else {
		outcome("pwrite()", pwrite(names[name].h[FD_A].fd, buf, cell_size(cell),
					   cell_at[cell]), errno);
		free(buf);
	}
	return true;
}

static bool do_map(const struct op *op)
{
	const int name = op->arg[0];
	struct mfile *f;
	void *p;

	if (!name_exists(name, FD_A) || names[name].map || names[name].h[FD_A].fd < 0)
		return false;
	f = names[name].file;
	if (f->sealed || !f->cells || names[name].h[FD_A].ro)
		return false;

	want(f->seals & F_SEAL_WRITE, EPERM);
	p = mmap(NULL, cell_at[f->cells], PROT_READ | PROT_WRITE, MAP_SHARED,
		 names[name].h[FD_A].fd, 0);
	if (!outcome("mmap()", p == MAP_FAILED ? -1 : 0, errno))
		return true;
	names[name].map = p;
	f->refs++;
	return true;
}

/* What has been written is there, whatever was tried meanwhile. */
static bool do_unmap(const struct op *op)
{
	const int name = op->arg[0];
	struct mfile *f;
	int c, w;

	if (!name_exists(name, FD_A) || !names[name].map)
		return false;
	f = names[name].file;
	for (c = 0; c < f->cells; c++) {
		for (w = 0; w < NR_WORDS && is_private(f, c); w++) {
			uint64_t value = READ_ONCE(*(uint64_t *)(names[name].map + word_at(c, w)));

			tally()->host++;
			agree(value == f->word[c][w], "mapped word %d of cell %d: %#lx, not %#lx",
			      w, c, value, f->word[c][w]);
		}
	}
	munmap(names[name].map, cell_at[f->cells]);
	tally()->calls++;
	names[name].map = NULL;
	put_name(name);
	return true;
}

/* Nobody promises that no more than what was written is in a huge page. */
static void learn_extents(int name, int who)
{
	struct mfile *f = names[name].file;
	int c;

	for (c = 0; c < f->cells; c++) {
		int64_t at = cell_at[c];

		if (!is_private(f, c))
			f->private[c] = do_call(name, who, CALL_LSEEK, at, SEEK_DATA).ret == at;
	}
}

static bool do_seal(const struct op *op)
{
	const int name = op->arg[0], what = op->arg[2];
	int who = op->arg[1];
	static const unsigned int seals[] = {
		F_SEAL_INACCESSIBLE, F_SEAL_INACCESSIBLE | F_SEAL_SEAL, F_SEAL_SEAL, F_SEAL_GROW,
		F_SEAL_SHRINK, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE, F_SEAL_EXEC,
		F_SEAL_INACCESSIBLE | F_SEAL_WRITE, F_SEAL_INACCESSIBLE | F_SEAL_FUTURE_WRITE,
		F_SEAL_INACCESSIBLE | F_SEAL_GROW, 0x80,
	};
	unsigned int old, write = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE, set;
	struct mfile *f;
	struct result res;
	bool first;

	who = usable(who);
	if (!name_exists(name, who) || what >= ARRAY_SIZE(seals))
		return false;
	f = names[name].file;
	set = seals[what];
	old = f->seals;
	/* Before that it is an ordinary file; only what matters later is tried. */
	if (!f->sealed && !(set & (F_SEAL_INACCESSIBLE | F_SEAL_SEAL | F_SEAL_WRITE)))
		return false;

	first = set & ~old & F_SEAL_INACCESSIBLE;
	want(names[name].h[who].fd < 0, EBADF);
	want(names[name].h[who].ro, EPERM);
	want(set & 0x80, EINVAL);
	want(old & F_SEAL_SEAL, EPERM);
	want((old | set) & F_SEAL_INACCESSIBLE && (old | set) & write, EPERM);
	want(!f->sealed && set & (F_SEAL_INACCESSIBLE | F_SEAL_WRITE) & ~old && names[name].map,
	     EBUSY);
	res = do_call(name, who, CALL_ADD_SEALS, set);
	if (outcome("F_ADD_SEALS", res.ret, res.error)) {
		f->seals |= set | (first ? F_SEAL_EXEC : 0);
		if (first) {
			f->sealed = true;
			f->late = true;
			if (backing_is_huge() && !backing_is_hugetlb())
				learn_extents(name, who);
		}
	}
	check_file(name);
	check_file_cells(f, 0, f->cells);
	return true;
}

static bool do_convert(const struct op *op)
{
	const int name = op->arg[0], cell = op->arg[2], nr = op->arg[3], mode = op->arg[4];
	const int rest = op->arg[5];
	const bool alloc = op->kind == OP_ALLOC;
	static const unsigned int bad_modes[] = {
		FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_INSERT_RANGE, FALLOC_FL_UNSHARE_RANGE, FALLOC_FL_PUNCH_HOLE,
	};
	uint64_t offset, len;
	struct mfile *f;
	struct result res;
	int who = op->arg[1], flags, c;

	who = usable(who);
	if (!name_exists(name, who) || cell + nr > nr_cells + 2 ||
	    mode >= 2 + ARRAY_SIZE(bad_modes))
		return false;
	f = names[name].file;
	if (!f->sealed)
		return false;

	offset = cell_at[cell] + (rest == 1 ? 512 : 0);
	len = cell_at[cell + nr] - cell_at[cell] + (rest == 2 ? 512 : 0);
	flags = alloc ? (mode ? 0 : FALLOC_FL_KEEP_SIZE) :
			FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	if (mode > 1)
		flags = bad_modes[mode - 2];

	want(names[name].h[who].fd < 0 || names[name].h[who].ro, EBADF);
	want(mode > 1, EOPNOTSUPP);
	want(rest == 1 || rest == 2 || !nr || cell + nr > f->cells, EINVAL);
	res = do_call(name, who, CALL_FALLOCATE, flags, offset, len);
	if (!nr_wanted && !alloc && res.ret && backing_is_huge() && !backing_is_hugetlb() &&
	    (res.error == EBUSY || res.error == ENOMEM)) {
		/* A huge page that can't be split now.  Nothing may have changed. */
		tape->busy++;
		want(true, res.error);
	}
	if (outcome(alloc ? "fallocate()" : "punching a hole", res.ret, res.error)) {
		for (c = cell; c < cell + nr; c++) {
			if (alloc && !is_private(f, c))
				memset(f->word[c], 0, sizeof(f->word[c]));
			f->private[c] = alloc;
		}
		disown(f);
	}
	check_file_cells(f, cell, nr);
	return true;
}

static bool do_try(const struct op *op)
{
	const int name = op->arg[0], what = op->arg[2], cell = op->arg[3];
	int who = op->arg[1];
	struct mfile *f;
	struct result res;
	bool ro;

	who = usable(who);
	if (!name_exists(name, who) || what >= NR_TRIES || cell > nr_cells)
		return false;
	f = names[name].file;
	if (!f->sealed)
		return false;
	/* That there is nothing to be copied comes first. */
	if (what == TRY_COPY && cell >= f->cells)
		return false;

	ro = names[name].h[who].ro;
	want(names[name].h[who].fd < 0, EBADF);
	want(ro && (what == TRY_WRITE || what == TRY_PWRITE || what == TRY_SPLICE_IN), EBADF);
	want(ro && what == TRY_MMAP_SHARED, EACCES);
	want(true, EPERM);
	/* The VFS knows better which calls hugetlbfs doesn't have. */
	want(backing_is_hugetlb() && what != TRY_MMAP && what != TRY_MMAP_SHARED, EINVAL);
	want(backing_is_hugetlb() && what == TRY_COPY, EXDEV);
	res = do_call(name, who, CALL_TRY, what, cell_at[cell]);
	outcome("getting at the content", res.ret, res.error);
	if (cell < nr_cells)
		check_file_cells(f, cell, 1);
	return true;
}

static void got_fd(int name, int who, int fd, bool ro)
{
	names[name].h[who].fd = fd;
	names[name].h[who].ro = ro;
	names[name].file->refs++;
}

/* By dup() or by SCM_RIGHTS, depending on where it comes from and goes to. */
static bool do_dup(const struct op *op)
{
	const int name = op->arg[0], who = op->arg[1], to = op->arg[2];
	int fd = -1, sock[2] = { -1, -1 }, *flight;
	char byte = 0;
	bool ro;

	if (!name_exists(name, who) || to >= NR_FDS || who == to || names[name].h[to].fd >= 0 ||
	    names[name].h[who].fd < 0)
		return false;
	/* One of the two ends is here. */
	if (who > FD_B && to > FD_B)
		return false;

	fd = names[name].h[who].fd;
	ro = names[name].h[who].ro;
	flight = names[name].flight;
	if (to == FD_FLIGHT) {
		TEST_ASSERT(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock),
			    "socketpair() failed: %s", strerror(errno));
		flight[0] = sock[0];
		flight[1] = sock[1];
		send_msg(sock[0], &byte, 1, fd);
		fd = 0;
	} else if (who == FD_FLIGHT) {
		receive_msg(flight[1], &byte, 1, &fd);
		close(flight[0]);
		close(flight[1]);
		names[name].h[FD_FLIGHT].fd = -1;
		names[name].file->refs--;
	} else if (to == FD_PEER) {
		fd = peer_call(&(struct call){ .kind = CALL_RECEIVE }, fd, NULL).ret;
	} else if (who == FD_PEER) {
		peer_call(&(struct call){ .kind = CALL_SEND, .fd = fd }, -1, &fd);
	} else {
		fd = dup(fd);
	}
	outcome("passing a descriptor on", fd, errno);
	got_fd(name, to, fd, ro);
	check_file(name);
	return true;
}

static bool do_reopen(const struct op *op)
{
	const int name = op->arg[0], who = op->arg[1], to = op->arg[2], ro = op->arg[3];
	struct result res;

	if (!name_exists(name, who) || who > FD_B || to > FD_B || names[name].h[to].fd >= 0 ||
	    names[name].h[who].fd < 0)
		return false;
	/* The mode is that of an ordinary file until it is sealed, and root may all. */
	res = do_call(name, who, CALL_REOPEN, ro ? O_RDONLY : O_RDWR);
	want(names[name].file->seals & F_SEAL_WRITE && !ro && res.ret < 0, res.error);
	if (outcome("reopening", res.ret, res.error))
		got_fd(name, to, res.ret, ro);
	check_file(name);
	return true;
}

static bool do_close(const struct op *op)
{
	const int name = op->arg[0], who = op->arg[1];

	if (!name_exists(name, who) || names[name].h[who].fd < 0)
		return false;
	if (who == FD_FLIGHT) {
		close(names[name].flight[0]);
		close(names[name].flight[1]);
		tally()->calls++;
	} else {
		struct result res = do_call(name, who, CALL_CLOSE);

		outcome("close()", res.ret, res.error);
	}
	names[name].h[who].fd = -1;
	put_name(name);
	return true;
}

/* What can be wrong with a region that is nobody else's fault. */
enum {
	BAD_NOTHING, BAD_OFFSET, BAD_READONLY, BAD_DIRTY_LOG, BAD_GUEST_MEMFD, BAD_PAD1, BAD_PAD2,
	BAD_HVA, BAD_END, BAD_FD, BAD_KIND, BAD_SLOT, BAD_GPA, BAD_HIGH_GPA, BAD_ORDINARY,
	NR_BAD,
	V1_IOCTL = 16,		/* may be added to each */
};

/* As it is to be, before anything is made wrong. */
static struct kvm_userspace_memory_region2 bind_region(const uint8_t *arg)
{
	const int slot = arg[1], name = arg[2], who = arg[3], cell = arg[4], nr = arg[5];
	const int ram = arg[6], place = arg[7], shift = arg[8];

	return (struct kvm_userspace_memory_region2) {
		.slot = PRIVATE_SLOT + slot,
		.flags = KVM_MEM_PRIVATE,
		.guest_phys_addr = PRIVATE_GPA + cell_at[cell] % SZ_2M + shift * PAGE_SIZE +
				   place * (align_up(cell_at[nr_cells], SZ_2M) + SZ_2M),
		.memory_size = cell_at[cell + nr] - cell_at[cell],
		.userspace_addr = (uintptr_t)rams[ram].hva + cell_at[cell],
		.private_fd = names[name].file ? names[name].h[who].fd : -1,
		.private_offset = cell_at[cell],
	};
}

static bool is_bound(const struct mfile *f, int cell, int nr)
{
	int i, j;

	for (i = 0; i < NR_VMS; i++) {
		for (j = 0; j < NR_SLOTS; j++) {
			struct mslot *s = &vms[i].slot[j];

			if (s->file == f && s->cell < cell + nr && cell < s->cell + s->nr)
				return true;
		}
	}
	return false;
}

static bool do_bind(const struct op *op)
{
	const uint8_t *arg = op->arg;
	const int vm = arg[0], slot = arg[1], name = arg[2], who = arg[3], cell = arg[4];
	const int nr = arg[5], ram = arg[6], place = arg[7], shift = arg[8];
	const int bad = arg[9] % V1_IOCTL, v1 = arg[9] / V1_IOCTL;
	struct kvm_userspace_memory_region2 region;
	struct mfile *f = NULL;
	struct mslot *s;
	struct mvm *v;
	int r, error;

	if (vm >= NR_VMS || slot >= NR_SLOTS || name >= NR_FILES || who > FD_B || !nr ||
	    cell + nr > nr_cells + 2 || cell >= nr_cells || ram >= NR_RAMS || place >= NR_PLACES ||
	    shift > 1 || bad >= NR_BAD || v1 > 1)
		return false;
	v = get_vm(vm);
	s = &v->slot[slot];
	if (bad == BAD_ORDINARY && !s->file)
		return false;

	region = bind_region(arg);
	if (region.private_fd != -1)
		f = names[name].file;

	want(s->file, EINVAL);
	want(slot_of_gpa(v, region.guest_phys_addr, region.memory_size) && !s->file, EEXIST);
	want(!f, EBADF);
	if (f) {
		want(!f->sealed || cell + nr > f->cells, EINVAL);
		want(names[name].h[who].ro, EBADF);
		want(f->owner && f->owner != v->id, EBUSY);
		want(is_bound(f, cell, nr), EEXIST);
	}
	switch (bad) {
	case BAD_OFFSET:
		region.private_offset += 512;
		break;
	case BAD_READONLY:
		region.flags |= KVM_MEM_READONLY;
		break;
	case BAD_DIRTY_LOG:
		region.flags |= KVM_MEM_LOG_DIRTY_PAGES;
		break;
	case BAD_GUEST_MEMFD:
		region.flags |= KVM_MEM_GUEST_MEMFD;
		break;
	case BAD_PAD1:
		region.pad1 = 1;
		break;
	case BAD_PAD2:
		region.pad2[13] = 1ull << 63;
		break;
	case BAD_HVA:
		region.userspace_addr += 8;
		break;
	case BAD_END:
		region.private_offset = -region.memory_size;
		break;
	case BAD_FD:
		region.private_fd = -1;
		want(true, EBADF);
		break;
	case BAD_KIND:
		region.private_fd = v->vm->kvm_fd;
		break;
	case BAD_SLOT:
		region.slot = 1 << 16 | 4;
		break;
	case BAD_GPA:
		region.guest_phys_addr += 8;
		break;
	case BAD_HIGH_GPA:
		region.guest_phys_addr = 1ull << 52;
		break;
	case BAD_ORDINARY:
		region.flags = 0;
		break;
	}
	want(bad && bad != BAD_FD, EINVAL);

	r = ioctl(v->vm->fd, v1 ? KVM_SET_USER_MEMORY_REGION : KVM_SET_USER_MEMORY_REGION2,
		  &region);
	error = errno;
	if (outcome("setting a slot", r, error)) {
		*s = (struct mslot) {
			.file = f,
			.cell = cell,
			.nr = nr,
			.ram = ram,
			.gpa = region.guest_phys_addr,
		};
		f->owner = v->id;
		f->binds++;
		f->refs++;
	} else if (f) {
		check_file_cells(f, cell, 1);
		/* Binding fails late: an owner may have come and gone. */
		disown(f);
	}
	check_slot(vm, slot);
	return true;
}

static bool do_unbind(const struct op *op)
{
	const int vm = op->arg[0], slot = op->arg[1], how = op->arg[2];
	struct kvm_userspace_memory_region2 region = { .slot = PRIVATE_SLOT + slot };
	struct mslot *s;
	struct mvm *v;
	int r;

	if (vm >= NR_VMS || slot >= NR_SLOTS || !vms[vm].vm)
		return false;
	v = &vms[vm];
	s = &v->slot[slot];

	/* Whatever else it says, size zero deletes. */
	if (how & 1)
		region.flags = KVM_MEM_PRIVATE;
	if (how & 2)
		region.private_fd = -1;
	want(!s->file, EINVAL);
	r = ioctl(v->vm->fd, how & 4 ? KVM_SET_USER_MEMORY_REGION : KVM_SET_USER_MEMORY_REGION2,
		  &region);
	if (outcome("deleting a slot", r, errno)) {
		struct mfile *f = s->file;

		slot_gone(s);
		if (f->refs)
			check_file_cells(f, s->cell, s->nr);
	}
	check_slot(vm, slot);
	return true;
}

static bool do_kill(const struct op *op)
{
	const int vm = op->arg[0];
	int i;

	if (vm >= NR_VMS || !vms[vm].vm)
		return false;
	kvm_vm_free(vms[vm].vm);
	tally()->calls++;
	for (i = 0; i < NR_SLOTS; i++)
		if (vms[vm].slot[i].file)
			slot_gone(&vms[vm].slot[i]);
	memset(&vms[vm], 0, sizeof(vms[vm]));
	return true;
}

/* A VM belongs to the process that has made it, also when others have its fd. */
static bool do_foreign(const struct op *op)
{
	const int vm = op->arg[0], slot = op->arg[1];
	struct call call = { .kind = CALL_RECEIVE };
	struct result res;

	if (vm >= NR_VMS || slot >= NR_SLOTS || !vms[vm].vm)
		return false;
	call.fd = peer_call(&call, vms[vm].vm->fd, NULL).ret;
	call.kind = CALL_REGION;
	call.arg[0] = PRIVATE_SLOT + slot;
	res = peer_call(&call, -1, NULL);
	want(true, EIO);
	outcome("deleting a slot of another process", res.ret, res.error);
	call.kind = CALL_CLOSE;
	peer_call(&call, -1, NULL);
	check_slot(vm, slot);
	return true;
}

static bool do_prefault(const struct op *op)
{
	const int vm = op->arg[0], cpu = op->arg[1], slot = op->arg[2], cell = op->arg[3];
	const int nr = op->arg[4];
	struct kvm_pre_fault_memory range;
	uint64_t left, gpa, size;
	struct mslot *s;
	int c, r, error = 0;

	if (vm >= NR_VMS || cpu >= NR_VCPUS || slot >= NR_SLOTS || !vms[vm].vm ||
	    !vms[vm].vcpu[cpu])
		return false;
	s = &vms[vm].slot[slot];
	if (!s->file || cell < s->cell || !nr || cell + nr > s->cell + s->nr)
		return false;

	gpa = slot_gpa(s, cell, 0);
	size = cell_at[cell + nr] - cell_at[cell];
	left = size;
	for (c = cell; c < cell + nr && !error; c++) {
		enum effect effect;

		if (!guest_word(s, c, 0, false, &effect))
			error = EFAULT;
		else
			left -= cell_size(c);
	}
	range = (struct kvm_pre_fault_memory){ .gpa = gpa, .size = size };
	do {
		r = ioctl(vms[vm].vcpu[cpu]->fd, KVM_PRE_FAULT_MEMORY, &range);
	} while (r ? errno == EINTR || errno == EAGAIN : range.size);
	want(error, error);
	outcome("KVM_PRE_FAULT_MEMORY", r, errno);
	agree(range.size == left && range.gpa == gpa + size - left,
	      "KVM_PRE_FAULT_MEMORY: %#llx bytes left at %#llx, not %#lx at %#lx", range.size,
	      range.gpa, left, gpa + size - left);
	check_file_cells(s->file, cell, nr);
	return true;
}

/* Attributes are for slots of another kind. */
static bool do_attributes(const struct op *op)
{
	const int vm = op->arg[0], slot = op->arg[1], cell = op->arg[2], nr = op->arg[3];
	const int on = op->arg[4];
	struct kvm_memory_attributes attr = {
		.attributes = on ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0,
	};
	struct mslot *s;
	int r;

	if (vm >= NR_VMS || slot >= NR_SLOTS || !vms[vm].vm)
		return false;
	s = &vms[vm].slot[slot];
	if (!s->file || cell < s->cell || !nr || cell + nr > s->cell + s->nr)
		return false;

	attr.address = slot_gpa(s, cell, 0);
	attr.size = cell_at[cell + nr] - cell_at[cell];
	want(true, EINVAL);
	r = ioctl(vms[vm].vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &attr);
	outcome("KVM_SET_MEMORY_ATTRIBUTES", r, errno);
	check_file_cells(s->file, cell, nr);
	return true;
}

static bool do_guest(const struct op *op)
{
	const uint8_t *a = op->arg;
	const bool string = a[5];

	if (a[0] >= NR_VMS || a[1] >= NR_VCPUS || a[2] >= NR_SLOTS || a[4] >= NR_WORDS)
		return false;
	return guest_access(a[0], a[1], a[2], a[3], a[4], op->kind == OP_GREAD ?
			    (string ? OUTS : READ) : (string ? INS : WRITE));
}

static bool ram_exists(int ram, int cell, int nr)
{
	return ram < NR_RAMS && nr && cell + nr <= nr_cells;
}

static bool do_host(const struct op *op)
{
	const int ram = op->arg[0], cell = op->arg[1], word = op->arg[2];
	const bool write = op->kind == OP_HWRITE;

	if (!ram_exists(ram, cell, 1) || word >= NR_WORDS)
		return false;
	if (!(rams[ram].prot[cell] & (write ? PROT_WRITE : PROT_READ)))
		return false;
	if (!write) {
		check_ram_word(ram, cell, word);
		return true;
	}
	rams[ram].word[cell][word] = new_value();
	WRITE_ONCE(*ram_word(ram, cell, word), rams[ram].word[cell][word]);
	tally()->host++;
	return true;
}

static bool do_discard(const struct op *op)
{
	const int ram = op->arg[0], cell = op->arg[1], nr = op->arg[2];
	int r;

	if (!ram_exists(ram, cell, nr))
		return false;
	r = madvise(rams[ram].hva + cell_at[cell], cell_at[cell + nr] - cell_at[cell],
		    MADV_DONTNEED);
	outcome("MADV_DONTNEED", r, errno);
	memset(rams[ram].word[cell], 0, nr * sizeof(rams[ram].word[cell]));
	check_ram_cells(ram, cell, nr);
	return true;
}

/* Huge pages in the shared half, if they can be had, with the same content. */
static bool do_collapse(const struct op *op)
{
	const int ram = op->arg[0];

	if (!ram_exists(ram, 0, 1))
		return false;
	madvise(rams[ram].hva, align_up(cell_at[nr_cells], SZ_2M), MADV_COLLAPSE);
	tally()->calls++;
	check_ram_cells(ram, 0, nr_cells);
	return true;
}

static bool do_protect(const struct op *op)
{
	const int ram = op->arg[0], cell = op->arg[1], nr = op->arg[2], how = op->arg[3];
	static const int prots[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE };
	int r, c;

	if (!ram_exists(ram, cell, nr) || how >= ARRAY_SIZE(prots))
		return false;
	r = mprotect(rams[ram].hva + cell_at[cell], cell_at[cell + nr] - cell_at[cell], prots[how]);
	outcome("mprotect()", r, errno);
	for (c = cell; c < cell + nr; c++)
		rams[ram].prot[c] = prots[how];
	check_ram_cells(ram, cell, nr);
	return true;
}

static bool do_fork(const struct op *op)
{
	pid_t pid = fork();
	int status;

	TEST_ASSERT(pid >= 0, "fork() failed: %s", strerror(errno));
	if (!pid)
		_exit(0);
	waitpid(pid, &status, 0);
	tally()->calls++;
	return true;
}

/* The peer ends, with all that it has open. */
static bool do_exit(const struct op *op)
{
	struct result res = peer_call(&(struct call){ .kind = CALL_EXIT }, -1, NULL);
	int i, status;

	waitpid(peer_pid, &status, 0);
	peer_pid = res.ret;
	tally()->calls++;
	for (i = 0; i < NR_FILES; i++) {
		if (names[i].file && names[i].h[FD_PEER].fd >= 0) {
			names[i].h[FD_PEER].fd = -1;
			put_name(i);
		}
	}
	return true;
}

static bool (* const run[NR_OPS])(const struct op *op) = {
	[OP_CREATE] = do_create, [OP_SIZE] = do_size, [OP_FILL] = do_fill, [OP_MAP] = do_map,
	[OP_UNMAP] = do_unmap, [OP_SEAL] = do_seal, [OP_ALLOC] = do_convert,
	[OP_PUNCH] = do_convert, [OP_TRY] = do_try, [OP_DUP] = do_dup, [OP_REOPEN] = do_reopen,
	[OP_CLOSE] = do_close, [OP_BIND] = do_bind, [OP_UNBIND] = do_unbind, [OP_KILL] = do_kill,
	[OP_FOREIGN] = do_foreign, [OP_PREFAULT] = do_prefault, [OP_ATTRIBUTES] = do_attributes,
	[OP_GREAD] = do_guest, [OP_GWRITE] = do_guest, [OP_HREAD] = do_host, [OP_HWRITE] = do_host,
	[OP_DISCARD] = do_discard, [OP_COLLAPSE] = do_collapse, [OP_PROTECT] = do_protect,
	[OP_FORK] = do_fork, [OP_EXIT] = do_exit,
};

static void execute(const struct op *op)
{
	refused = false;
	/* Accesses by one vCPU go together; all else comes after them. */
	if (op->kind != OP_GREAD && op->kind != OP_GWRITE)
		flush();

	if (!run[op->kind](op))
		tape->kind[op->kind].skipped++;
	else if (refused)
		tape->kind[op->kind].refused++;
	else
		tape->kind[op->kind].done++;
}

/* ------------------------------------------------------------------------ */
/* What to do next: mostly what makes sense in the state that the model has. */

static const uint8_t weights[NR_OPS] = {
	[OP_CREATE] = 20, [OP_SIZE] = 4, [OP_FILL] = 8, [OP_MAP] = 4, [OP_UNMAP] = 6,
	[OP_SEAL] = 10, [OP_ALLOC] = 100, [OP_PUNCH] = 90, [OP_TRY] = 20, [OP_DUP] = 16,
	[OP_REOPEN] = 6, [OP_CLOSE] = 26, [OP_BIND] = 26, [OP_UNBIND] = 9, [OP_KILL] = 1,
	[OP_FOREIGN] = 1, [OP_PREFAULT] = 20, [OP_GREAD] = 40, [OP_GWRITE] = 60, [OP_HREAD] = 10,
	[OP_HWRITE] = 60, [OP_DISCARD] = 10, [OP_PROTECT] = 8, [OP_FORK] = 1, [OP_EXIT] = 1,
	[OP_ATTRIBUTES] = 3, [OP_COLLAPSE] = 2,
};

/* What is decided already: accesses by one vCPU or to one ram, the life of a file. */
static struct op burst, planned[16];
static int burst_left, nr_planned;

static struct op *plan(enum op_kind kind, int name)
{
	struct op *op = &planned[nr_planned++];

	memset(op, 0, sizeof(*op));
	op->kind = kind;
	op->arg[0] = name;
	return op;
}

/* One that exists, and if possible is of a kind. */
static int some_name(bool (*kind)(const struct mfile *f))
{
	int i, name = rnd(NR_FILES), any = name;

	for (i = 0; i < NR_FILES; i++, name = (name + 1) % NR_FILES) {
		if (!names[name].file)
			continue;
		if (kind(names[name].file))
			return name;
		any = name;
	}
	return any;
}

static bool is_any(const struct mfile *f)
{
	return true;
}

static bool is_useful(const struct mfile *f)
{
	return f->sealed && f->cells;
}

static bool is_open(const struct mfile *f)
{
	return !f->sealed;
}

static int unused_name(void)
{
	int name;

	for (name = 0; name < NR_FILES && names[name].file; name++)
		;
	return name % NR_FILES;
}

static int some_fd(int name)
{
	int i, who = rnd(FD_FLIGHT);

	if (one_in(20))
		return rnd(NR_FDS);
	/* The peer is slow. */
	if (who == FD_PEER && !one_in(8))
		who = FD_A;
	for (i = 0; i < FD_FLIGHT; i++, who = (who + 1) % FD_FLIGHT)
		if (names[name].file && names[name].h[who].fd >= 0 && !names[name].h[who].ro)
			break;
	return who;
}

/* Mostly a few cells, and rarely those that take long. */
static void some_cells(uint8_t *cell, uint8_t *nr, int max)
{
	do {
		*nr = 1 + (one_in(3) ? rnd(max) : rnd(min(max, 3)));
		*cell = rnd(max - *nr + 1);
	} while (cell_at[*cell + *nr] - cell_at[*cell] > SZ_1M && !one_in(8) &&
		 !backing_is_hugetlb());
}

static int some_slot(int vm)
{
	int i, slot = rnd(NR_SLOTS);

	if (one_in(32))
		return slot;
	for (i = 0; i < NR_SLOTS; i++, slot = (slot + 1) % NR_SLOTS)
		if (vms[vm].slot[slot].file)
			break;
	return slot;
}

/* One with a slot, if there is any. */
static int some_vm(void)
{
	int i, vm = rnd(BARE_VM);

	for (i = 0; i < BARE_VM; i++, vm = (vm + 1) % BARE_VM)
		if (vms[vm].slot[some_slot(vm)].file)
			break;
	return vm;
}

static int some_cell_of(struct mslot *s)
{
	return s->cell + (s->nr ? rnd(s->nr) : 0);
}

/* The first, and how many. */
static void some_cells_of(struct mslot *s, uint8_t *a)
{
	a[0] = some_cell_of(s);
	a[1] = 1 + rnd(max(s->cell + s->nr - a[0], 1));
}

static void generate_bind(uint8_t *a)
{
	struct kvm_userspace_memory_region2 region;
	struct mfile *f;
	int i;

	a[0] = one_in(10) ? BARE_VM : rnd(BARE_VM);
	a[2] = some_name(is_useful);
	f = names[a[2]].file;
	a[3] = one_in(2) ? FD_A : FD_B;
	if (f && (names[a[2]].h[a[3]].fd < 0 || names[a[2]].h[a[3]].ro) && !one_in(16))
		a[3] = !a[3];
	/* Its owner can. */
	for (i = 0; f && i < NR_VMS; i++)
		if (f->owner && vms[i].id == f->owner && vms[i].vm && !one_in(10))
			a[0] = i;
	a[1] = rnd(NR_SLOTS);
	for (i = 0; i < NR_SLOTS && vms[a[0]].slot[a[1]].file; i++)
		a[1] = (a[1] + 1) % NR_SLOTS;
	a[6] = one_in(8) ? 3 : rnd(3);
	a[9] = (one_in(10) ? rnd(NR_BAD) : BAD_NOTHING) + (one_in(3) ? V1_IOCTL : 0);

	/* Where there is room for it, unless it is to fail. */
	for (i = 0; i < 12; i++) {
		if (!f || !f->cells || one_in(16)) {
			some_cells(&a[4], &a[5], nr_cells + 2);
		} else if (one_in(3)) {
			a[4] = 0;
			a[5] = f->cells;
		} else {
			a[5] = 1 + rnd(f->cells);
			a[4] = rnd(f->cells - a[5] + 1);
		}
		a[7] = rnd(NR_PLACES);
		a[8] = one_in(4);
		region = bind_region(a);
		if (!f || one_in(16) ||
		    (!is_bound(f, a[4], a[5]) && a[4] + a[5] <= f->cells &&
		     !slot_of_gpa(&vms[a[0]], region.guest_phys_addr, region.memory_size)))
			break;
	}
}

static void generate_guest(struct op *op)
{
	struct mslot *s;

	op->arg[2] = some_slot(op->arg[0]);
	s = &vms[op->arg[0]].slot[op->arg[2]];
	op->arg[3] = some_cell_of(s);
	op->arg[4] = rnd(NR_WORDS);
	op->arg[5] = one_in(24);
}

/* A file by itself is of no use. */
static void plan_file(int name, bool late)
{
	int i, n, cells = one_in(2) ? nr_cells : 1 + rnd(nr_cells);

	/* The last comes first. */
	if (late) {
		plan(OP_SEAL, name);
		if (one_in(4)) {
			plan(OP_UNMAP, name);
			plan(OP_SEAL, name);
			plan(OP_MAP, name);
		}
		for (i = 0, n = rnd(4); i < n; i++)
			plan(OP_FILL, name)->arg[1] = rnd(cells);
	}
	if (!one_in(16))
		plan(OP_SIZE, name)->arg[2] = cells;
}

static void generate(struct op *op)
{
	unsigned int sum = 0, pick, i;
	struct mfile *f;
	uint8_t *a = op->arg;

	memset(op, 0, sizeof(*op));
	if (burst_left) {
		burst_left--;
		*op = burst;
		if (op->kind == OP_HWRITE) {
			a[1] = rnd(nr_cells);
			a[2] = rnd(NR_WORDS);
			return;
		}
		op->kind = one_in(2) ? OP_GREAD : OP_GWRITE;
		generate_guest(op);
		return;
	}
	if (nr_planned && !one_in(4)) {
		*op = planned[--nr_planned];
		return;
	}

	for (i = 0; i < NR_OPS; i++)
		sum += weights[i];
	pick = rnd(sum);
	for (i = 0; pick >= weights[i]; i++)
		pick -= weights[i];
	op->kind = i;

	a[0] = some_name(op->kind == OP_FILL || op->kind == OP_MAP ? is_open :
			 one_in(16) || op->kind == OP_CLOSE ? is_any : is_useful);
	f = names[a[0]].file;
	a[1] = some_fd(a[0]);
	switch (op->kind) {
	case OP_CREATE:
		a[0] = unused_name();
		a[1] = one_in(10) ? 4 + rnd(2) : rnd(4);
		if (!names[a[0]].file && a[1] < 4 && nr_planned < 4)
			plan_file(a[0], a[1] == 3);
		break;
	case OP_SIZE:
		a[2] = one_in(4) && f ? f->cells : rnd(nr_cells + 1);
		a[3] = one_in(8);
		break;
	case OP_FILL:
		a[1] = f && f->cells ? rnd(f->cells) : 0;
		break;
	case OP_MAP:
		a[1] = 0;
		break;
	case OP_UNMAP:
		a[1] = 0;
		for (i = 0; i < NR_FILES; i++)
			if (names[i].map)
				a[0] = i;
		break;
	case OP_SEAL:
		if (one_in(2))
			a[0] = some_name(is_open);
		a[2] = one_in(2) ? 0 : rnd(12);
		break;
	case OP_ALLOC:
	case OP_PUNCH:
		some_cells(&a[2], &a[3], f && f->cells && !one_in(24) ? f->cells : nr_cells + 2);
		a[4] = one_in(32) ? 2 + rnd(5) : one_in(4);
		a[5] = one_in(32) ? 1 + rnd(2) : 0;
		if (one_in(40))
			a[3] = 0;
		break;
	case OP_TRY:
		a[2] = rnd(NR_TRIES);
		a[3] = rnd(nr_cells + 1);
		break;
	case OP_DUP:
		for (i = 0; i < 8 && f && (names[a[0]].h[a[1]].fd < 0 || a[1] == a[2] ||
					   names[a[0]].h[a[2]].fd >= 0); i++) {
			a[1] = rnd(NR_FDS);
			a[2] = rnd(NR_FDS);
		}
		break;
	case OP_REOPEN:
		a[1] = !f || names[a[0]].h[FD_A].fd < 0;
		a[2] = !a[1];
		a[3] = one_in(2);
		break;
	case OP_CLOSE:
		/* Not always the last one. */
		for (i = 0; i < 8 && f && (names[a[0]].h[a[1]].fd < 0 || f->refs == 1); i++) {
			a[0] = some_name(is_any);
			f = names[a[0]].file;
			a[1] = rnd(NR_FDS);
		}
		break;
	case OP_BIND:
		generate_bind(a);
		break;
	case OP_UNBIND:
		a[0] = one_in(8) ? BARE_VM : some_vm();
		a[1] = some_slot(a[0]);
		a[2] = rnd(8);
		break;
	case OP_KILL:
		a[0] = one_in(6) ? rnd(NR_VMS) : BARE_VM;
		a[1] = 0;
		break;
	case OP_FOREIGN:
		a[0] = rnd(NR_VMS);
		a[1] = some_slot(a[0]);
		break;
	case OP_PREFAULT:
		a[0] = some_vm();
		a[1] = rnd(NR_VCPUS);
		a[2] = some_slot(a[0]);
		some_cells_of(&vms[a[0]].slot[a[2]], &a[3]);
		break;
	case OP_ATTRIBUTES:
		a[0] = one_in(8) ? BARE_VM : some_vm();
		a[1] = some_slot(a[0]);
		some_cells_of(&vms[a[0]].slot[a[1]], &a[2]);
		a[4] = one_in(2);
		break;
	case OP_COLLAPSE:
		a[0] = rnd(NR_RAMS);
		a[1] = 0;
		break;
	case OP_GREAD:
	case OP_GWRITE:
		a[0] = some_vm();
		a[1] = rnd(NR_VCPUS);
		burst = *op;
			burst_left = vms[a[0]].slot[some_slot(a[0])].file ? rnd(96) : 0;
		generate_guest(op);
		break;
	case OP_HREAD:
	case OP_HWRITE:
		a[0] = rnd(NR_RAMS);
		a[1] = rnd(nr_cells);
		a[2] = rnd(NR_WORDS);
		burst = *op;
		burst_left = op->kind == OP_HWRITE ? rnd(24) : 0;
		break;
	case OP_DISCARD:
	case OP_PROTECT:
		a[0] = rnd(NR_RAMS);
		some_cells(&a[1], &a[2], nr_cells);
		/* Ram 3 is for private-only slots, the others mostly are not. */
		a[3] = op->kind == OP_DISCARD ? 0 : a[0] == 3 ? !one_in(3) ? 0 : rnd(3) :
			one_in(3) ? rnd(3) : 2;
		break;
	default:
		a[0] = 0;
		a[1] = 0;
	}
}

/* ------------------------------------------------------------------------ */
/* Programs as text */

static void print_op(FILE *to, const struct op *op)
{
	int i;

	fprintf(to, "%s", op_info[op->kind].name);
	for (i = 0; i < NR_ARGS && op_info[op->kind].arg[i]; i++)
		if (op->arg[i])
			fprintf(to, " %s=%u", op_info[op->kind].arg[i], op->arg[i]);
	fprintf(to, "\n");
}

static void parse_word(struct op *op, char *word)
{
	char *value = strchr(word, '=');
	int i;

	TEST_ASSERT(value, "Not name=value: %s", word);
	*value++ = '\0';
	for (i = 0; i < NR_ARGS && op_info[op->kind].arg[i]; i++) {
		if (!strcmp(op_info[op->kind].arg[i], word)) {
			op->arg[i] = atoi_non_negative(word, value);
			return;
		}
	}
	TEST_FAIL("%s has no %s", op_info[op->kind].name, word);
}

/* Puts a program on the tape. */
static void parse(const char *text)
{
	char *copy = strdup(text), *line, *word, *lines = copy, *words;

	tape->nr = 0;
	while ((line = strsep(&lines, "\n"))) {
		struct op *op = &tape->op[tape->nr];

		words = line;
		word = strsep(&words, " \t");
		if (!*word || *word == '#')
			continue;
		TEST_ASSERT(tape->nr < EPOCH, "The program is too long");
		memset(op, 0, sizeof(*op));
		while (op->kind < NR_OPS && strcmp(op_info[op->kind].name, word))
			op->kind++;
		TEST_ASSERT(op->kind < NR_OPS, "There is no operation '%s'", word);
		while ((word = strsep(&words, " \t")))
			if (*word)
				parse_word(op, word);
		tape->nr++;
	}
	free(copy);
}

/* ------------------------------------------------------------------------ */
/* Running: always in a child, which may die of it. */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static uint64_t nr_done(void)
{
	return tape->done.calls + tape->done.guest + tape->done.host;
}

static uint64_t max_done, deadline;

static bool enough(void)
{
	return (max_done && nr_done() >= max_done) || (deadline && now_ns() >= deadline);
}

static void child_init(void)
{
	int r, c;

	cpu_set_t cpus;

	/* Nothing runs at the same time, so nobody has to be woken up elsewhere. */
	CPU_ZERO(&cpus);
	CPU_SET(sched_getcpu(), &cpus);
	TEST_ASSERT(!sched_setaffinity(0, sizeof(cpus), &cpus), "sched_setaffinity() failed");

	peer_start();
	/* Misaligned against the file, and with nothing behind it. */
	for (r = 0; r < NR_RAMS; r++) {
		int prot = r == 3 ? PROT_NONE : PROT_READ | PROT_WRITE;

		rams[r].hva = map_half(cell_at[nr_cells] + 2 * UNIT, r == 1, prot);
		for (c = 0; c < nr_cells; c++)
			rams[r].prot[c] = prot;
	}
}

static void __noreturn child_random(void)
{
	for (tape->nr = 0; tape->nr < EPOCH; ) {
		if (tape->nr % 64 == 0) {
			if (enough())
				break;
			alarm(HANGS);
		}
		tape->at = tape->nr;
		generate(&tape->op[tape->nr]);
		execute(&tape->op[tape->nr++]);
		if (tape->nr % FULL_CHECK == 0)
			check_all();
	}
	flush();
	check_all();
	_exit(0);
}

static void __noreturn child_program(void)
{
	alarm(HANGS);
	for (tape->at = 0; tape->at < tape->nr; tape->at++) {
		execute(&tape->op[tape->at]);
		if (!thorough && (tape->at + 1) % FULL_CHECK == 0)
			check_all();
	}
	tape->at = tape->nr - 1;
	check_all();
	_exit(0);
}

/* Returns whether all is well.  With no seed it is the program on the tape. */
static bool run_child(const uint64_t *seed, bool quiet)
{
	int status, null;
	pid_t pid;

	tape->message[0] = '\0';
	fflush(stdout);
	gen_state = seed ? *seed : 0;
	look_state = ~gen_state;
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed: %s", strerror(errno));
	if (!pid) {
		if (quiet) {
			null = open("/dev/null", O_WRONLY);
			dup2(null, STDERR_FILENO);
			dup2(null, STDOUT_FILENO);
		}
		child_init();
		if (seed)
			child_random();
		child_program();
	}
	waitpid(pid, &status, 0);
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return true;
	if (!tape->message[0])
		snprintf(tape->message, sizeof(tape->message),
			 WIFSIGNALED(status) ? "killed by signal %d%s" : "exit code %d",
			 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
			 WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? ": it hangs" : "");
	return false;
}

/* ------------------------------------------------------------------------ */
/* Shrinking */

#define SHRINK_SECONDS	120

static struct op *kept;
static unsigned int nr_kept, nr_tries;
static uint64_t shrink_end;

static bool still_fails(const struct op *op, unsigned int nr)
{
	if (now_ns() > shrink_end)
		return false;
	nr_tries++;
	memcpy(tape->op, op, nr * sizeof(*op));
	tape->nr = nr;
	if (run_child(NULL, true))
		return false;
	/* Nothing after the one that has failed matters. */
	nr_kept = tape->at + 1;
	memcpy(kept, op, nr_kept * sizeof(*op));
	return true;
}

static void leave_out(void)
{
	struct op *candidate = calloc(EPOCH, sizeof(*candidate));
	unsigned int chunk, first, nr, before;

	for (chunk = nr_kept / 2; chunk; ) {
		before = nr_kept;
		for (first = 0; first < nr_kept; ) {
			nr = min(chunk, nr_kept - first);
			memcpy(candidate, kept, first * sizeof(*kept));
			memcpy(candidate + first, kept + first + nr,
			       (nr_kept - first - nr) * sizeof(*kept));
			if (nr == nr_kept || !still_fails(candidate, nr_kept - nr))
				first += nr;
		}
		if (chunk > 1)
			chunk /= 2;
		else if (before == nr_kept || now_ns() > shrink_end)
			break;
	}
	free(candidate);
}

/* The smaller a number is, the less there is to wonder about. */
static void simplify(void)
{
	struct op *candidate = calloc(EPOCH, sizeof(*candidate));
	unsigned int i, j, value;

	for (i = 0; i < nr_kept; i++) {
		for (j = 0; j < NR_ARGS; j++) {
			for (value = 0; i < nr_kept && value < kept[i].arg[j]; value++) {
				memcpy(candidate, kept, nr_kept * sizeof(*kept));
				candidate[i].arg[j] = value;
				if (still_fails(candidate, nr_kept))
					break;
				if (value == 1 && kept[i].arg[j] > 4)
					value = kept[i].arg[j] - 2;
			}
		}
	}
	free(candidate);
}

static void __noreturn report(const char *where)
{
	static char first[sizeof(tape->message)];
	unsigned int i, nr;
	bool again;

	memcpy(first, tape->message, sizeof(first));
	nr = tape->at + 1;
	printf("# %s, operation %u: %s\n", where, nr, first);
	fflush(stdout);

	kept = calloc(EPOCH, sizeof(*kept));
	nr_kept = nr;
	memcpy(kept, tape->op, nr * sizeof(*kept));
	shrink_end = now_ns() + SHRINK_SECONDS * scaled(100) / 100 * 1000000000ull;
	thorough = true;
	again = still_fails(kept, nr);
	if (!again) {
		/* Looking everywhere touches everything: it may take less of that. */
		thorough = false;
		again = still_fails(kept, nr);
	}
	if (again) {
		leave_out();
		simplify();
		leave_out();
		shrink_end = ~0ull;
		for (i = 0, again = false; i < 5 && !again; i++)
			again = still_fails(kept, nr_kept);
	}
	printf("# %u operations of %u are left after %u tries, for -r with " BACKING_ENV "=%s:\n",
	       nr_kept, nr, nr_tries, private_backing()->name);
	if (!again)
		printf("# It does not fail every time.\n");
	for (i = 0; i < nr_kept; i++)
		print_op(stdout, &kept[i]);
	printf("# %s\n", again ? tape->message : first);
	fflush(stdout);
	TEST_FAIL("The kernel and the model disagree: %s", again ? tape->message : first);
}

/* ------------------------------------------------------------------------ */

static char *read_file(const char *path)
{
	FILE *f = strcmp(path, "-") ? fopen(path, "r") : stdin;
	char *text = calloc(1, SZ_1M);

	TEST_ASSERT(f, "Can't read %s: %s", path, strerror(errno));
	TEST_ASSERT(fread(text, 1, SZ_1M - 1, f) < SZ_1M - 1, "%s is too large", path);
	return text;
}

static uint64_t free_huge_pages(void)
{
	return backing_is_hugetlb() ? read_hugetlb("free_hugepages") : 0;
}

static void help(const char *name)
{
	printf("usage: %s [-s seed] [-n operations] [-t seconds] [-r program] [-v]\n", name);
	exit(KSFT_SKIP);
}

int main(int argc, char *argv[])
{
	uint64_t seed, start, progress, huge_pages, ns;
	unsigned long seconds = 0;
	const char *program = NULL;
	bool verbose = false, first = true;
	char where[64];
	int opt, i;

	TEST_ASSERT(getrandom(&seed, sizeof(seed), 0) == sizeof(seed), "getrandom() failed");
	while ((opt = getopt(argc, argv, "s:n:t:r:v")) != -1) {
		switch (opt) {
		case 's':
			seed = strtoull(optarg, NULL, 0);
			first = false;
			break;
		case 'n':
			max_done = strtoull(optarg, NULL, 0);
			break;
		case 't':
			seconds = atoi_positive("Seconds", optarg);
			break;
		case 'r':
			program = optarg;
			break;
		case 'v':
			verbose = true;
			break;
		default:
			help(argv[0]);
		}
	}
	if (!max_done && !seconds)
		seconds = 10;

	require_private_mem();
	TEST_REQUIRE(!backing_is_1g());	/* there isn't time to clear it */
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_SYNC_REGS) & KVM_SYNC_X86_REGS);
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_MEMORY_ATTRIBUTES) & KVM_MEMORY_ATTRIBUTE_PRIVATE);
	cells_init();
	huge_pages = free_huge_pages();
	/* With a VM that stays KVM need not start anew for each that comes and goes. */
	vm_create_barebones();
	tape = map_for_children(sizeof(*tape));

	thorough = true;
	for (i = 0; i < (program ? 1 : first ? ARRAY_SIZE(programs) : 0); i++) {
		char *text = program ? read_file(program) : strdup(programs[i]);

		parse(text);
		snprintf(where, sizeof(where), program ? "the program" : "program %d", i);
		if (!run_child(NULL, false))
			report(where);
		free(text);
	}
	if (program) {
		printf("# %u operations: no disagreement\n", tape->nr);
		return 0;
	}

	thorough = false;
	memset(tape, 0, sizeof(*tape));
	start = now_ns();
	progress = start;
	if (seconds)
		deadline = start + seconds * scaled(100) / 100 * 1000000000ull;
	printf("# %s, seed %#lx\n", private_backing()->name, seed);
	do {
		snprintf(where, sizeof(where), "seed %#lx", seed);
		if (!run_child(&seed, false))
			report(where);
		tape->epochs++;
		tape->steps += tape->nr;
		/* Epochs can be run by themselves: the seed of the next follows from it. */
		seed = next_random(&seed);
		if (now_ns() - progress > PROGRESS * 1000000000ull) {
			progress = now_ns();
			printf("# %lu operations after %lu s, seed %#lx is next\n", nr_done(),
			       (progress - start) / 1000000000, seed);
		}
	} while (!enough());
	ns = now_ns() - start;

	/* The last peer may need a moment. */
	for (i = 0; i < 100 && free_huge_pages() != huge_pages; i++)
		usleep(50000);
	TEST_ASSERT(free_huge_pages() == huge_pages, "%lu huge pages of %lu are left",
		    free_huge_pages(), huge_pages);
	printf("# %lu operations, %lu a second: %lu calls, %lu guest accesses, %lu host accesses\n",
	       nr_done(), nr_done() * 1000 / (ns / 1000000), tape->done.calls, tape->done.guest,
	       tape->done.host);
	printf("# ... and to compare %lu calls, %lu guest accesses, %lu host accesses\n",
	       tape->checks.calls, tape->checks.guest, tape->checks.host);
	printf("# %lu epochs, %lu steps, %lu holes refused for now\n",
	       tape->epochs, tape->steps, tape->busy);
	/* Nobody else is there to hold a huge page for long. */
	TEST_ASSERT(tape->busy <= 3 + tape->kind[OP_PUNCH].done / 100,
		    "%lu of %lu holes refused for now", tape->busy, tape->kind[OP_PUNCH].done);
	for (i = 0; verbose && i < NR_OPS; i++)
		printf("# %-10s %8lu done, %8lu refused, %8lu with nothing to do\n",
		       op_info[i].name, tape->kind[i].done, tape->kind[i].refused,
		       tape->kind[i].skipped);
	for (i = 0; nr_done() > 100000 && i < NR_OPS; i++)
		TEST_ASSERT(tape->kind[i].done + tape->kind[i].refused, "There was no %s",
			    op_info[i].name);
	return 0;
}
