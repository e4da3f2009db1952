/* SPDX-License-Identifier: GPL-2.0 */
/* SHA-256 (FIPS 180-4), the same code in the VMM and in the guest. */
#ifndef VMM_SHA256_H
#define VMM_SHA256_H

#include <linux/types.h>
#include <stddef.h>

#define SHA256_SIZE	32
#define SHA256_BLOCK	64

struct sha256 {
	__u32 state[8];
	__u64 len;			/* bytes taken in so far */
	__u8 block[SHA256_BLOCK];	/* the last, incomplete block */
};

void sha256_init(struct sha256 *s);
void sha256_update(struct sha256 *s, const void *data, size_t len);
void sha256_final(struct sha256 *s, __u8 digest[SHA256_SIZE]);

/* Of @words words that are made of @seed, see guest/abi.h. */
void sha256_made_of(__u64 seed, __u64 words, __u8 digest[SHA256_SIZE]);

#endif
