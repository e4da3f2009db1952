// SPDX-License-Identifier: GPL-2.0
#include "guest/abi.h"
#include "sha256.h"

static const __u32 k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
	0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
	0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
	0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
	0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
	0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
	0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
	0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static __u32 ror(__u32 x, int n)
{
	return x >> n | x << (32 - n);
}

static __u32 load_be32(const __u8 *p)
{
	return (__u32)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3];
}

static void compress(__u32 state[8], const __u8 *block)
{
	__u32 w[64], v[8];
	int i;

	for (i = 0; i < 16; i++)
		w[i] = load_be32(block + 4 * i);
	for (; i < 64; i++) {
		__u32 a = w[i - 15], b = w[i - 2];

		w[i] = w[i - 16] + (ror(a, 7) ^ ror(a, 18) ^ a >> 3) +
		       w[i - 7] + (ror(b, 17) ^ ror(b, 19) ^ b >> 10);
	}

	for (i = 0; i < 8; i++)
		v[i] = state[i];

	/* v[0] to v[7] are the standard's a to h. */
	for (i = 0; i < 64; i++) {
		__u32 t1 = v[7] + (ror(v[4], 6) ^ ror(v[4], 11) ^ ror(v[4], 25)) +
			   ((v[4] & v[5]) ^ (~v[4] & v[6])) + k[i] + w[i];
		__u32 t2 = (ror(v[0], 2) ^ ror(v[0], 13) ^ ror(v[0], 22)) +
			   ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));

		v[7] = v[6];
		v[6] = v[5];
		v[5] = v[4];
		v[4] = v[3] + t1;
		v[3] = v[2];
		v[2] = v[1];
		v[1] = v[0];
		v[0] = t1 + t2;
	}

	for (i = 0; i < 8; i++)
		state[i] += v[i];
}

void sha256_init(struct sha256 *s)
{
	/* Not a static initializer: the guest has no library to copy it. */
	s->state[0] = 0x6a09e667;
	s->state[1] = 0xbb67ae85;
	s->state[2] = 0x3c6ef372;
	s->state[3] = 0xa54ff53a;
	s->state[4] = 0x510e527f;
	s->state[5] = 0x9b05688c;
	s->state[6] = 0x1f83d9ab;
	s->state[7] = 0x5be0cd19;
	s->len = 0;
}

void sha256_update(struct sha256 *s, const void *data, size_t len)
{
	const __u8 *p = data;

	while (len--) {
		s->block[s->len++ % SHA256_BLOCK] = *p++;
		if (s->len % SHA256_BLOCK == 0)
			compress(s->state, s->block);
	}
}

void sha256_final(struct sha256 *s, __u8 digest[SHA256_SIZE])
{
	__u64 bits = s->len * 8;
	__u8 byte = 0x80;
	int i;

	sha256_update(s, &byte, 1);
	byte = 0;
	while (s->len % SHA256_BLOCK != SHA256_BLOCK - 8)
		sha256_update(s, &byte, 1);
	for (i = 56; i >= 0; i -= 8) {
		byte = bits >> i;
		sha256_update(s, &byte, 1);
	}

	for (i = 0; i < SHA256_SIZE; i++)
		digest[i] = s->state[i / 4] >> (24 - 8 * (i % 4));
}

void sha256_made_of(__u64 seed, __u64 words, __u8 digest[SHA256_SIZE])
{
	struct sha256 s;
	__u64 i, word;

	sha256_init(&s);
	for (i = 0; i < words; i++) {
		word = made_of(seed, i);
		sha256_update(&s, &word, sizeof(word));
	}
	sha256_final(&s, digest);
}
