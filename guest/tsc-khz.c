// SPDX-License-Identifier: GPL-2.0
/* Print the frequency of this machine's TSC in kHz, which is the guest's, too: see tools/vm. Runs on the host. */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

static int64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* Time and TSC at the same moment: the closest of some tries, for the machine may be busy. */
static void sample(int64_t *time, int64_t *tsc)
{
	int64_t best = INT64_MAX;

	for (int i = 0; i < 100; i++) {
		int64_t before = now(), t = __rdtsc(), after = now();

		if (after - before < best) {
			best = after - before;
			*time = before + best / 2;
			*tsc = t;
		}
	}
}

int main(void)
{
	int64_t time1, time2, tsc1, tsc2;

	sample(&time1, &tsc1);
	usleep(100000);
	sample(&time2, &tsc2);
	printf("%lld\n", (long long)((tsc2 - tsc1) * 1000000 / (time2 - time1)));
	return 0;
}
