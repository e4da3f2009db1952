/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the measurements share. They run in an emulated machine that counts
 * instructions (tools/vm, need icount): one tick of the TSC is one instruction,
 * whatever the host is doing meanwhile. Sleeping is not free: time jumps.
 *
 *   bench.c	clock, figures, small helpers
 *   vm.c	a VM whose guest does nothing but touch memory
 *   store.c	the kinds of memory that are compared
 *   private.c	private memory, side by side
 *   cost.c	what others pay: the same programs on base and patched kernel
 *   contend.c	several vCPUs against conversions; by the clock, not by icount
 *
 * The programs print one line a figure, separated by tabs:
 *
 *   figure STEP STORE UNIT VALUE
 *
 * VALUE is the minimum of the samples, or - if the store can't do the step.
 */
#ifndef BENCH_H
#define BENCH_H

#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define __printf(f, a)	__attribute__((format(printf, f, a)))
#define __noreturn	__attribute__((noreturn))

#define SZ_4K		0x1000ULL
#define SZ_64K		0x10000ULL
#define SZ_2M		0x200000ULL
#define SZ_64M		0x4000000ULL
#define SZ_256M		0x10000000ULL
#define SZ_1G		0x40000000ULL
#define SZ_4G		0x100000000ULL

/* Print "program: ...: strerror(errno)" and leave: a figure is right or not there. */
void __noreturn die(const char *fmt, ...) __printf(1, 2);

static inline __u64 ticks(void)
{
	__u32 lo, hi;

	asm volatile("lfence; rdtsc" : "=a"(lo), "=d"(hi) : : "memory");
	return (__u64)hi << 32 | lo;
}

/* Leave unless a tick is an instruction. */
void check_ticks(void);

/*
 * The time at the begin of what is measured, with the machine in a known state:
 * what was put off before (freeing memory by RCU, timers) is done, and there are
 * few free pages at hand, which would cost less than others.
 */
__u64 begin(void);


/* Record a sample of a figure; the smallest counts. */
void sample(const char *step, const char *store, const char *unit, double value);

/* Record that @store can't do @step. */
void no_sample(const char *step, const char *store, const char *unit);

/* Print all figures, in the order of their first samples. */
void print_figures(void);

/* printf into a string that is never freed: they are few. */
const char *text(const char *fmt, ...) __printf(1, 2);

/* "4K", "2M"... */
const char *size_text(__u64 size);

/* Write @value to a file of sysfs, procfs or cgroupfs. */
void write_text(const char *path, const char *value);

/* The number after "@key " in a file like /proc/meminfo. */
__u64 read_field(const char *path, const char *key);

#endif
