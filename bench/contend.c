// SPDX-License-Identifier: GPL-2.0
/*
 * A storm of conversions against a vCPU, on machines with more than one CPU.
 * Instructions mean nothing here, so time is the clock's, the stores take turns,
 * and what counts is the median over the turns.
 *
 * The vCPU writes to each page of 2 MiB of private memory, again and again; the
 * storm converts 4 KiB to shared and back: far away (apart), or in the same
 * 2 MiB (near; the page itself is left alone). Prints how often either got
 * round in a second.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "store.h"

#define TURNS	9
#define TURN_NS	300000000ULL
#define SIZE	SZ_64M
#define NEAR	SZ_4K		/* the page that is converted, and is not touched */
#define APART	(SIZE / 2)

struct storm {
	struct mem mem;
	__u64 offset;
	atomic_bool stop;
	unsigned long rounds;
};

static __u64 now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static void *storm(void *arg)
{
	struct storm *s = arg;

	while (!atomic_load(&s->stop)) {
		mem_to_shared(&s->mem, s->offset, SZ_4K);
		mem_to_private(&s->mem, s->offset, SZ_4K);
		s->rounds++;
	}
	return NULL;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values)
{
	qsort(values, TURNS, sizeof(*values), compare);
	return values[TURNS / 2];
}

/* One turn; returns rounds of the vCPU a second, and of the storm in *@storms. */
static double turn(const struct store *store, __u64 offset, double *storms)
{
	struct storm s = { .offset = offset };
	unsigned long rounds = 0;
	pthread_t thread;
	struct vm vm;
	__u64 start;
	double took;

	vm_create(&vm, 1);
	mem_create(&s.mem, store, &vm, SIZE, 1, 1);
	mem_to_private(&s.mem, 0, SIZE);
	mem_touch(&s.mem, 0, SZ_2M);
	mem_touch(&s.mem, APART, SZ_2M);
	if (offset && pthread_create(&thread, NULL, storm, &s))
		die("pthread_create");
	start = now();
	do {
		/* From the page after NEAR on. */
		mem_touch(&s.mem, NEAR + SZ_4K, SZ_2M - NEAR - SZ_4K);
		rounds++;
	} while (now() - start < TURN_NS);
	took = (now() - start) / 1e9;
	atomic_store(&s.stop, true);
	if (offset)
		pthread_join(thread, NULL);
	*storms = s.rounds / took;
	mem_destroy(&s.mem);
	vm_destroy(&vm);
	return rounds / took;
}

static void contend(const char *name, __u64 offset)
{
	static double vcpu[16][TURNS], storms[16][TURNS];
	bool there[16];
	size_t i;

	for (i = 0; i < nr_stores; i++)
		there[i] = stores[i].kind != SHARED && stores[i].granule <= SZ_4K &&
			   store_there(&stores[i]);
	for (int t = 0; t < TURNS; t++)
		for (i = 0; i < nr_stores; i++)
			if (there[i])
				vcpu[i][t] = turn(&stores[i], offset, &storms[i][t]);
	for (i = 0; i < nr_stores; i++) {
		if (!there[i])
			continue;
		sample(text("contend-%s-vcpu", name), stores[i].name, "round/s", median(vcpu[i]));
		if (offset)
			sample(text("contend-%s-storm", name), stores[i].name, "conversion/s",
			       median(storms[i]));
	}
}

int main(void)
{
	contend("alone", 0);
	contend("apart", APART);
	contend("near", NEAR);
	print_figures();
	return 0;
}
