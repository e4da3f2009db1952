// SPDX-License-Identifier: GPL-2.0
/*
 * Init of the Linux guest: the first process, and the workload. It makes a
 * secret and keeps it in many pages, tells the VMM where they are and the
 * secret only masked, works with memory, processes and files, and turns the
 * machine off. Static, and without modules, so that any kernel will do.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "../sha256.h"
#include "abi.h"

#define MEMORY_MAX	(512UL << 20)	/* to work on */
#define FORKS		120
#define EXEC_EVERY	10
#define FILES		300
#define FILE_MAX	20000

static __u8 mask[SECRET_SIZE], secret[SECRET_SIZE];
static __u64 seed;
static struct line *pattern;

/* --- talking to the VMM --- */

static void __attribute__((noreturn)) die(const char *what)
{
	printf("init: %s: %s\n", what, strerror(errno));
	fflush(stdout);
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

/* As a string instruction: KVM reads each word from private memory. */
static void send_data(const void *data, size_t len)
{
	asm volatile("" : : : "memory");	/* which outsl() lacks */
	outsl(PORT_DATA, data, len / 4);
}

static void step(enum step nr)
{
	outl(nr, PORT_STEP);
}

/* No echo, no editing: what the VMM types is for us. */
static void open_console(void)
{
	struct termios t;

	setlinebuf(stdout);
	if (tcgetattr(0, &t))
		die("no console");
	t.c_lflag &= ~(ECHO | ECHOE | ECHOK | ECHONL);
	tcsetattr(0, TCSANOW, &t);
}

static void take_order(void)
{
	char line[ORDER_MAX], hex[65];
	unsigned long long value;
	unsigned int byte, i;

	if (!fgets(line, sizeof(line), stdin) || sscanf(line, ORDER_FORMAT, hex, &value) != 2)
		die("no order on the console");
	seed = value;
	for (i = 0; i < SECRET_SIZE && sscanf(hex + 2 * i, "%2x", &byte) == 1; i++)
		mask[i] = byte;
	if (i < SECRET_SIZE)
		die("half an order on the console");
}

static void set_up(void)
{
	mount("proc", "/proc", "proc", 0, NULL);
	if (mount("tmpfs", "/tmp", "tmpfs", 0, NULL))
		die("/tmp");
	if (ioperm(PORT_DATA, 4, 1) || ioperm(PORT_STEP, 4, 1))
		die("ioperm");
}

/* --- the secret --- */

/* What is told once is to stay true. */
static void keep_pages_in_place(void)
{
	int fd = open("/proc/sys/vm/compact_unevictable_allowed", O_WRONLY);

	if (fd >= 0 && write(fd, "0", 1) == 1)
		close(fd);
}

static __u64 gpa_of(int pagemap, const void *p)
{
	__u64 entry;

	const off_t where = (unsigned long)p / PAGE_SIZE * sizeof(entry);

	if (pread(pagemap, &entry, sizeof(entry), where) != sizeof(entry) || !(entry >> 63))
		die("/proc/self/pagemap");
	return (entry & ((1ULL << 55) - 1)) * PAGE_SIZE;
}

static void make_line(struct line *line, size_t i)
{
	memcpy(line->secret, secret, SECRET_SIZE);
	line->gpa = i;
	memset(line->text, 0, sizeof(line->text));
	strcpy((char *)line->text, "private guest memory");
}

static void make_secret(void)
{
	static struct secret msg = { .magic = WORK_MAGIC };
	const size_t size = SECRET_PAGES * PAGE_SIZE;
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	size_t i;

	keep_pages_in_place();
	if (getrandom(secret, SECRET_SIZE, 0) != SECRET_SIZE)
		die("getrandom");
	pattern = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pagemap < 0 || pattern == MAP_FAILED || mlock(pattern, size))
		die("memory for the secret");
	for (i = 0; i < size / sizeof(*pattern); i++)
		make_line(pattern + i, i);
	for (i = 0; i < SECRET_PAGES; i++)
		msg.gpa[i] = gpa_of(pagemap, (char *)pattern + i * PAGE_SIZE);
	for (i = 0; i < SECRET_SIZE; i++)
		msg.masked[i] = secret[i] ^ mask[i];
	close(pagemap);
	send_data(&msg, sizeof(msg));
}

static void count_damage(void)
{
	struct damage msg = { .magic = WORK_MAGIC };
	const size_t lines = PAGE_SIZE / sizeof(*pattern);
	struct line line;
	size_t i, j;

	for (i = 0; i < SECRET_PAGES; i++) {
		for (j = 0; j < lines; j++) {
			make_line(&line, i * lines + j);
			if (memcmp(&line, pattern + i * lines + j, sizeof(line)))
				break;
		}
		msg.pages += j < lines;
	}
	send_data(&msg, sizeof(msg));
}

/* --- work --- */

/* Fill and sum words [first, end) of what is made of the seed, in own memory. */
static __u64 fill_and_sum(__u64 first, __u64 end)
{
	const size_t words = end - first;
	__u64 sum = 0, *p;
	size_t i;

	p = mmap(NULL, words * sizeof(*p), PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		return 0;
	for (i = 0; i < words; i++)
		p[i] = made_of(seed, first + i);
	for (i = 0; i < words; i++)
		sum += p[i];
	return sum;
}

/* On each CPU at once, each its part. */
static void work_on_memory(struct work *work)
{
	struct sysinfo info;
	__u64 *sums, words;
	unsigned int i;

	work->cpus = get_nprocs();
	sums = mmap(NULL, work->cpus * sizeof(*sums), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sysinfo(&info) || sums == MAP_FAILED)
		die("memory to work on");
	work->memory = info.freeram * info.mem_unit * 3 / 4;
	if (work->memory > MEMORY_MAX)
		work->memory = MEMORY_MAX;
	work->memory = work->memory / work->cpus / PAGE_SIZE * PAGE_SIZE * work->cpus;
	words = work->memory / work->cpus / sizeof(*sums);
	for (i = 0; i < work->cpus; i++) {
		if (fork())
			continue;
		sums[i] = fill_and_sum(i * words, (i + 1) * words);
		_exit(0);
	}
	while (wait(NULL) > 0)
		;
	for (i = 0; i < work->cpus; i++)
		work->sum += sums[i];
}

/* Write, read back, rename and remove a file; 0 if all was as it should be. */
static int handle_file(unsigned int nr)
{
	static __u64 buf[FILE_MAX / 8], back[FILE_MAX / 8];
	char name[32], other[32];
	size_t i, words = made_of(seed, nr) % (FILE_MAX / 8) + 1;
	int fd, wrong;

	snprintf(name, sizeof(name), "/tmp/file-%u", nr);
	snprintf(other, sizeof(other), "/tmp/other-%u", nr);
	for (i = 0; i < words; i++)
		buf[i] = made_of(seed + nr, i);
	fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0)
		return 1;
	wrong = write(fd, buf, words * 8) != (ssize_t)words * 8 || rename(name, other) ||
		pread(fd, back, words * 8, 0) != (ssize_t)words * 8 ||
		memcmp(buf, back, words * 8) || unlink(other);
	close(fd);
	return wrong;
}

static void run_child(unsigned int nr)
{
	static char *const argv[] = { "sh", "-c", "test $(seq 10 | wc -l) -eq 10", NULL };
	unsigned int i, per_child = FILES / FORKS + 1;

	if (nr % EXEC_EVERY == 0) {
		execv("/bin/sh", argv);
		_exit(99);
	}
	for (i = 0; i < per_child; i++)
		if (handle_file(nr * per_child + i))
			_exit(1);
	_exit(0);
}

/* All processes at once. */
static void storm(struct work *work)
{
	unsigned int i;
	int status;

	for (i = 0; i < FORKS; i++) {
		pid_t pid = fork();

		if (!pid)
			run_child(i);
		work->wrong += pid < 0;
	}
	while (wait(&status) > 0) {
		work->processes++;
		work->wrong += status != 0;
	}
	work->files = (FORKS - FORKS / EXEC_EVERY) * (FILES / FORKS + 1);
}

static void work(void)
{
	struct work work = { .magic = WORK_MAGIC };

	printf("init: processes and files\n");
	storm(&work);
	printf("init: memory\n");
	work_on_memory(&work);
	printf("init: SHA-256\n");
	sha256_made_of(seed, STREAM_SIZE / 8, work.stream);
	send_data(&work, sizeof(work));
}

int main(void)
{
	struct stat st;

	open_console();
	set_up();
	printf("init: up\n");
	step(STEP_UP);
	take_order();
	make_secret();
	step(STEP_SECRET);
	work();
	step(STEP_WORKED);
	count_damage();
	step(STEP_DAMAGE);

	/* Without ACPI there is no way to turn it off. */
	sync();
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	reboot(stat("/sys/firmware/acpi", &st) ? RB_AUTOBOOT : RB_POWER_OFF);
	die("reboot");
}
