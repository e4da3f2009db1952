// SPDX-License-Identifier: GPL-2.0
/*
 * The test guest's init: mounts the file systems, runs the tests of /plan one after the other, and reports on the
 * second serial port, which no test writes to.
 *
 * A line of /plan is "name timeout needs dir command...". The report is made of these lines:
 *
 *	BOOT release		init runs
 *	START name		the next test
 *	| text			a line of its output, stdout and stderr
 *	RESULT name how secs	how: exit:N, signal:N, timeout:N, needs:N (the guest can't offer what the test needs)
 *	DONE count		all of them ran; the guest ends by itself
 *
 * Whoever reads it takes a test with a START but no RESULT, or a report without DONE, as a failure.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define REPORT_TTY	"/dev/ttyS1"
#define OUTPUT_MAX	(1024 * 1024)	/* of one test, the rest is dropped */
#define KILL_SECONDS	20		/* a killed process that lives longer is stuck in the kernel */

static int report_fd = -1;
static int kmsg_fd = -1;

static void report(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void mark(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void write_all(int fd, const char *buf, size_t len)
{
	while (len > 0) {
		ssize_t n = write(fd, buf, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		buf += n;
		len -= n;
	}
}

/* A line of the report. */
static void report(const char *fmt, ...)
{
	char line[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof(line) - 1, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof(line) - 2)
		n = sizeof(line) - 2;
	line[n++] = '\n';
	write_all(report_fd, line, n);
}

/* A line on the console, so that what the kernel says can be laid at the door of a test. */
static void mark(const char *fmt, ...)
{
	char line[256];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	if (n >= (int)sizeof(line))
		n = sizeof(line) - 1;
	write_all(kmsg_fd, line, n);
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	write_all(fd, text, strlen(text));
	close(fd);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void mount_all(void)
{
	static const struct {
		const char *type, *where, *options;
	} mounts[] = {
		{ "proc",	"/proc",			NULL },
		{ "sysfs",	"/sys",				NULL },
		{ "devtmpfs",	"/dev",				NULL },
		{ "devpts",	"/dev/pts",			NULL },
		{ "tmpfs",	"/dev/shm",			"mode=1777" },
		{ "tmpfs",	"/tmp",				"mode=1777" },
		{ "tmpfs",	"/run",				"mode=0755" },
		{ "hugetlbfs",	"/dev/hugepages",		NULL },
		{ "debugfs",	"/sys/kernel/debug",		NULL },
		{ "tracefs",	"/sys/kernel/tracing",		NULL },
		{ "configfs",	"/sys/kernel/config",		NULL },
		{ "cgroup2",	"/sys/fs/cgroup",		NULL },
	};
	size_t i;

	for (i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
		mkdir(mounts[i].where, 0755);
		if (mount(mounts[i].type, mounts[i].where, mounts[i].type, 0, mounts[i].options))
			fprintf(stderr, "init: no %s on %s: %s\n", mounts[i].type, mounts[i].where, strerror(errno));
	}
}

/* The kernel makes parameters that it doesn't know variables: see tools/vm. All processes inherit this. */
static void avoid_cpu0(void)
{
	cpu_set_t cpus;

	if (!getenv("avoid_cpu0"))
		return;
	sched_getaffinity(0, sizeof(cpus), &cpus);
	CPU_CLR(0, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		fprintf(stderr, "init: can't leave CPU 0: %s\n", strerror(errno));
}

/* Runs argv to its end, with the console as its output. */
static int run(char *const argv[])
{
	int status = -1;
	pid_t pid = fork();

	if (pid == 0) {
		execv(argv[0], argv);
		_exit(127);
	}
	waitpid(pid, &status, 0);
	return status;
}

static void end_guest(void)
{
	tcdrain(report_fd);
	sync();
	/* Without ACPI there is no power off; QEMU runs with -no-reboot. */
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

/* Output of a test, cut into lines. */
struct output {
	char line[1024];
	size_t len;
	size_t total;
};

static void flush_line(struct output *o)
{
	static char buf[sizeof(o->line) + 3];

	memcpy(buf, "| ", 2);
	memcpy(buf + 2, o->line, o->len);
	buf[2 + o->len] = '\n';
	write_all(report_fd, buf, o->len + 3);
	o->len = 0;
}

static void add_output(struct output *o, const char *buf, size_t n)
{
	for (; n > 0; n--, buf++) {
		if (++o->total > OUTPUT_MAX)
			continue;
		if (*buf != '\n')
			o->line[o->len++] = *buf;
		if (*buf == '\n' || o->len == sizeof(o->line))
			flush_line(o);
	}
}

/* Reads what is there. Returns 0 at the end of the stream. */
static int read_output(struct output *o, int fd)
{
	char buf[4096];
	ssize_t n = read(fd, buf, sizeof(buf));

	if (n > 0)
		add_output(o, buf, n);
	return n != 0 && !(n < 0 && errno != EAGAIN && errno != EINTR);
}

/* init is everybody's last parent: whatever a test left behind ends here. Returns 0 when nothing is left. */
static int kill_all(void)
{
	double end = now() + KILL_SECONDS;

	kill(-1, SIGKILL);
	while (now() < end) {
		pid_t pid = waitpid(-1, NULL, WNOHANG);

		if (pid < 0 && errno == ECHILD)
			return 0;
		if (pid == 0)
			usleep(10000);
	}
	return -1;
}

static pid_t start(const char *dir, char *const argv[], int out)
{
	pid_t pid = fork();

	if (pid == 0) {
		int null = open("/dev/null", O_RDONLY);
		sigset_t none;

		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		setsid();
		dup2(null, 0);
		dup2(out, 1);
		dup2(out, 2);
		if (chdir(dir)) {
			fprintf(stderr, "no directory %s\n", dir);
			_exit(126);
		}
		execv(argv[0], argv);
		_exit(127);
	}
	return pid;
}

/*
 * Runs a command for at most timeout seconds, its output into the report. Returns how it ended in how; -1 when a
 * process can't be killed and the guest is of no more use.
 */
static int run_reported(const char *dir, char *const argv[], int timeout, char *how, size_t size)
{
	struct output o = { .len = 0 };
	double end = now() + timeout;
	int status = 0, fds[2], sfd, ended = 0, open_pipe = 1, stuck;
	sigset_t chld;
	pid_t pid;

	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, NULL);
	sfd = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
	if (pipe2(fds, O_CLOEXEC | O_NONBLOCK))
		return -1;
	/* The test sees an ordinary pipe. */
	fcntl(fds[1], F_SETFL, 0);

	pid = start(dir, argv, fds[1]);
	close(fds[1]);
	while (!ended && now() < end) {
		struct pollfd p[] = {
			{ .fd = sfd, .events = POLLIN },
			{ .fd = open_pipe ? fds[0] : -1, .events = POLLIN },
		};
		struct signalfd_siginfo si;

		poll(p, 2, 200);
		while (read(sfd, &si, sizeof(si)) > 0)
			;
		if (p[1].revents)
			open_pipe = read_output(&o, fds[0]);
		/* Other children are orphans of the test: reap them, too. */
		for (;;) {
			int s;
			pid_t p = waitpid(-1, &s, WNOHANG);

			if (p <= 0)
				break;
			if (p == pid) {
				status = s;
				ended = 1;
			}
		}
	}
	if (!ended) {
		/* Say where it hangs, before it is gone. */
		write_file("/proc/sysrq-trigger", "w");
		write_file("/proc/sysrq-trigger", "l");
	}
	stuck = kill_all();
	while (open_pipe && !stuck && read_output(&o, fds[0]))
		;
	if (o.len)
		flush_line(&o);
	if (o.total > OUTPUT_MAX)
		report("| [init: %zu bytes of output dropped]", o.total - OUTPUT_MAX);
	close(fds[0]);
	close(sfd);

	if (!ended)
		snprintf(how, size, "timeout:%d", timeout);
	else if (WIFSIGNALED(status))
		snprintf(how, size, "signal:%d", WTERMSIG(status));
	else
		snprintf(how, size, "exit:%d", WEXITSTATUS(status));
	return stuck;
}

static void test(char *name, int timeout, char *needs, char *dir, char *command)
{
	char *const up[] = { "/bin/needs", "up", needs, NULL };
	char *const down[] = { "/bin/needs", "down", needs, NULL };
	char *const argv[] = { "/bin/sh", "-c", command, NULL };
	char path[256], how[32];
	double begin = now();
	int stuck;

	report("START %s", name);
	mark("<5>guest: START %s", name);

	snprintf(path, sizeof(path), "/kselftest/%s", dir);
	stuck = run_reported("/", up, 60, how, sizeof(how));
	if (!stuck && strcmp(how, "exit:0")) {
		snprintf(how, sizeof(how), "needs:1");
	} else if (!stuck) {
		begin = now();
		stuck = run_reported(dir[0] == '/' ? dir : path, argv, timeout, how, sizeof(how));
	}
	report("RESULT %s %s %.2f", name, how, now() - begin);
	mark("<5>guest: END %s", name);
	if (stuck) {
		report("STUCK %s", name);
		end_guest();
	}
	run(down);
}

/* The tests of /plan; returns how many there were. */
static int run_plan(FILE *plan)
{
	char *line = NULL;
	size_t size = 0;
	int count = 0;

	while (getline(&line, &size, plan) > 0) {
		char *s = line, *name, *timeout, *needs, *dir;

		line[strcspn(line, "\n")] = '\0';
		name = strsep(&s, " ");
		timeout = strsep(&s, " ");
		needs = strsep(&s, " ");
		dir = strsep(&s, " ");
		if (!s)
			continue;
		test(name, atoi(timeout), needs, dir, s);
		count++;
	}
	free(line);
	return count;
}

static void shell(void)
{
	for (;;) {
		pid_t pid = fork();

		if (pid == 0) {
			setsid();
			ioctl(0, TIOCSCTTY, 1);
			chdir("/kselftest");
			execl("/bin/sh", "-sh", NULL);
			_exit(127);
		}
		waitpid(pid, NULL, 0);
		return;
	}
}

int main(void)
{
	char *const setup[] = { "/bin/sh", "/bin/setup", NULL };
	struct termios raw;
	struct utsname un;
	FILE *plan;

	mount_all();
	avoid_cpu0();
	setenv("PATH", "/bin:/sbin:/usr/bin:/usr/sbin", 1);
	setenv("HOME", "/", 1);
	setenv("TERM", "vt100", 1);

	kmsg_fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	report_fd = open(REPORT_TTY, O_WRONLY | O_NOCTTY | O_CLOEXEC);
	if (report_fd >= 0 && !tcgetattr(report_fd, &raw)) {
		cfmakeraw(&raw);
		cfsetspeed(&raw, B115200);
		tcsetattr(report_fd, TCSANOW, &raw);
	}
	uname(&un);
	report("BOOT %s", un.release);
	run(setup);

	plan = fopen("/plan", "re");
	if (plan)
		report("DONE %d", run_plan(plan));
	else
		shell();
	end_guest();
}
