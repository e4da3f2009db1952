// SPDX-License-Identifier: GPL-2.0
/*
 * What can be seen from outside of guests whose memory nobody can look into: of
 * a running process each inaccessible memfd, with what of it is private, and
 * the statistics of each VM. Nothing is changed, not even a file's position.
 *
 * What belongs together is up to the reader: the kernel doesn't say by these
 * ways which VM has bound which file (the tracepoint memfile:memfile_bind does).
 */
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vmm.h"

#ifndef F_GET_SEALS		/* as in vmm.h */
#define F_GET_SEALS		1034
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC		0x0020
#endif

static const char usage[] =
	"usage: inspect [-d] PID\n"
	"Prints the inaccessible memfds and the VMs of a process.\n"
	"\n"
	"  files       opened anew, for reading, through /proc/PID/fd. This takes the right\n"
	"              to look at the process (PTRACE_MODE_READ: the same user and dumpable,\n"
	"              or CAP_SYS_PTRACE), and to read the file by its mode. It shows what is\n"
	"              allocated, which is private; not one byte of it can be read.\n"
	"  statistics  from the binary statistics fd of the VM, if the process has one open,\n"
	"              taken over by pidfd_getfd(2), which takes PTRACE_MODE_ATTACH. Nobody\n"
	"              but the process can open one. Without one, or with -d: from debugfs,\n"
	"              as root.\n"
	"\n"
	"A guest that runs converts meanwhile: each range was right when it was asked for.\n"
	"Exit code 0: all could be seen; 1: something could not; 2: usage.\n";

enum kind { FILE_SEALED, VM, VM_STATS };

struct fd {
	enum kind kind;
	int nr;			/* in the process */
	int file;		/* FILE_SEALED: the same file, opened here */
	ino_t ino;
	char name[64];
};

static pid_t pid;
static struct fd *fds;
static unsigned int nr_fds;
static bool missed;

static void unseen(const char *what, int fd)
{
	warn("%s of file descriptor %d", what, fd);
	missed = true;
}

static void add(const struct fd *fd)
{
	fds = realloc(fds, (nr_fds + 1) * sizeof(*fds));
	if (!fds)
		err(1, "realloc");
	fds[nr_fds++] = *fd;
}

/* --- files --- */

/* Only what is a memfd comes here: to open others may have effects. */
static void add_memfd(const char *path, int nr, const char *name)
{
	struct fd fd = { .kind = FILE_SEALED, .nr = nr };
	struct stat st;
	int seals;

	fd.file = open(path, O_RDONLY | O_CLOEXEC);
	if (fd.file < 0 || fstat(fd.file, &st)) {
		unseen("opening", nr);
		return;
	}
	seals = fcntl(fd.file, F_GET_SEALS);
	if (seals < 0 || !(seals & F_SEAL_INACCESSIBLE)) {
		close(fd.file);
		return;
	}
	fd.ino = st.st_ino;
	snprintf(fd.name, sizeof(fd.name), "%.*s", (int)strcspn(name, " "), name);
	add(&fd);
}

static void print_map(int file)
{
	off_t data, hole = 0;
	unsigned long ranges = 0;
	__u64 bytes = 0;

	while ((data = lseek(file, hole, SEEK_DATA)) >= 0) {
		hole = lseek(file, data, SEEK_HOLE);
		if (hole < 0)
			break;
		printf("    %#12llx-%#llx %llu KiB\n", (__u64)data, (__u64)hole,
		       (__u64)(hole - data) >> 10);
		bytes += hole - data;
		ranges++;
	}
	if (errno != ENXIO) {	/* the end */
		warn("lseek");
		missed = true;
	}
	printf("  private: %llu KiB, ranges: %lu\n", bytes >> 10, ranges);
}

static void print_seals(int file)
{
	static const struct {
		int seal;
		const char *name;
	} names[] = {
		{ F_SEAL_INACCESSIBLE, "INACCESSIBLE" }, { F_SEAL_EXEC, "EXEC" },
		{ F_SEAL_SEAL, "SEAL" }, { F_SEAL_GROW, "GROW" }, { F_SEAL_SHRINK, "SHRINK" },
	};
	int seals = fcntl(file, F_GET_SEALS);
	size_t i;

	printf("  seals:");
	for (i = 0; i < ARRAY_SIZE(names); i++)
		if (seals & names[i].seal)
			printf(" %s", names[i].name);
	printf("\n");
}

/* What fdinfo has beyond what it has of each file: this kernel says no owner. */
static void print_fdinfo(int nr)
{
	static const char *const common[] = { "pos:", "flags:", "mnt_id:", "ino:" };
	char path[64], line[256];
	bool said = false;
	size_t i;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", pid, nr);
	f = fopen(path, "re");
	if (!f) {
		unseen("fdinfo", nr);
		return;
	}
	while (fgets(line, sizeof(line), f)) {
		for (i = 0; i < ARRAY_SIZE(common); i++)
			if (!strncmp(line, common[i], strlen(common[i])))
				break;
		if (i < ARRAY_SIZE(common))
			continue;
		printf("  fdinfo: %s", line);
		said = true;
	}
	if (!said)
		printf("  owner: fdinfo doesn't say\n");
	fclose(f);
}

static bool same_file(const struct fd *a, const struct fd *b)
{
	return a->kind == FILE_SEALED && b->kind == FILE_SEALED && a->ino == b->ino;
}

/* A file once, with all descriptors that the process has of it. */
static void print_file(const struct fd *fd)
{
	struct stat st = { 0 };
	const struct fd *other;

	for (other = fds; other < fd; other++)
		if (same_file(other, fd))
			return;
	fstat(fd->file, &st);
	printf("file %s, inode %llu, descriptors", fd->name, (__u64)fd->ino);
	for (; other < fds + nr_fds; other++)
		if (same_file(other, fd))
			printf(" %d", other->nr);
	printf("\n  size: %llu KiB, in pages of %llu KiB\n", (__u64)st.st_size >> 10,
	       (__u64)st.st_blksize >> 10);
	print_seals(fd->file);
	print_fdinfo(fd->nr);
	print_map(fd->file);
}

/* --- VMs --- */

/* What is not 0, and what private memory counts. */
static void print_stat(void *arg, const char *name, __u64 value)
{
	(void)arg;
	if (value || !strncmp(name, "private_", 8))
		printf("    %s %llu\n", name, value);
}

static void print_stats_fd(int nr)
{
	int pidfd = syscall(SYS_pidfd_open, pid, 0);
	int fd = pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd, pidfd, nr, 0);

	if (fd < 0) {
		unseen("taking a copy", nr);
	} else {
		printf("VM, statistics of descriptor %d\n", nr);
		for_each_stat(fd, print_stat, NULL);
		close(fd);
	}
	if (pidfd >= 0)
		close(pidfd);
}

/* A file of debugfs that is a number, and nothing but one. */
static bool read_number(int dir, const char *name, __u64 *value)
{
	char word[32], *end;
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	ssize_t len = fd < 0 ? -1 : read(fd, word, sizeof(word) - 1);

	if (fd >= 0)
		close(fd);
	if (len <= 0)
		return false;
	word[len] = '\0';
	*value = strtoull(word, &end, 10);
	return end > word && *end == '\n' && !end[1];
}

/* A VM's folder is called by process and descriptor at its creation. */
static void print_debugfs(int nr)
{
	struct dirent *entry;
	char path[64];
	__u64 value;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d", pid, nr);
	dir = opendir(path);
	if (!dir) {
		warn("statistics of VM %d: %s", nr, path);
		missed = true;
		return;
	}
	printf("VM %d, %s\n", nr, path);
	while ((entry = readdir(dir)))
		if (entry->d_type == DT_REG && read_number(dirfd(dir), entry->d_name, &value))
			print_stat(NULL, entry->d_name, value);
	closedir(dir);
}

/* --- the process --- */

static void collect(void)
{
	char path[PATH_MAX], name[PATH_MAX];
	struct dirent *entry;
	ssize_t len;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	if (!dir)
		err(1, "%s", path);
	while ((entry = readdir(dir))) {
		struct fd fd = { .nr = atoi(entry->d_name) };

		len = readlinkat(dirfd(dir), entry->d_name, name, sizeof(name) - 1);
		if (len < 0)
			continue;
		name[len] = '\0';
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd.nr);
		if (!strncmp(name, "/memfd:", 7)) {
			add_memfd(path, fd.nr, name + 7);
		} else if (!strcmp(name, "anon_inode:kvm-vm")) {
			fd.kind = VM;
			add(&fd);
		} else if (!strcmp(name, "anon_inode:kvm-vm-stats")) {
			fd.kind = VM_STATS;
			add(&fd);
		}
	}
	closedir(dir);
}

int main(int argc, char **argv)
{
	const bool debugfs = argc == 3 && !strcmp(argv[1], "-d");
	unsigned int i, nr[3] = { 0 };

	pid = argc == 2 + debugfs ? atoi(argv[argc - 1]) : 0;
	if (pid <= 0) {
		fputs(usage, stderr);
		return 2;
	}
	collect();
	for (i = 0; i < nr_fds; i++)
		nr[fds[i].kind]++;
	for (i = 0; i < nr_fds; i++) {
		if (fds[i].kind == FILE_SEALED)
			print_file(&fds[i]);
		else if (fds[i].kind == VM_STATS && !debugfs)
			print_stats_fd(fds[i].nr);
		else if (fds[i].kind == VM && (debugfs || !nr[VM_STATS]))
			print_debugfs(fds[i].nr);
	}
	if (!nr[FILE_SEALED] && !missed)
		printf("no inaccessible memfd\n");
	return missed;
}
