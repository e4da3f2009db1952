// SPDX-License-Identifier: GPL-2.0
/*
 * Where the memory of a private page goes when it has been punched out.  A guest
 * writes a secret to its pages, they are punched, and others take memory until
 * they have got these very pages: nobody finds a word of the secret.
 *
 * That the pages had it, and that they were used again, is what /proc/kcore says,
 * which shows all of the machine's memory: a search of all of it finds the secret
 * in as many pages as the guest has, and a look at these finds it there until they
 * are in use again.  A kernel that clears what is freed (init_on_free=1) fails here.
 */
#include <linux/elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "private_memfd.h"

/* As much as one takes at a time. */
#define CHUNK		SZ_8M
#define CHUNK_PAGES	(CHUNK / 4096ul)
#define MAX_CHUNKS	40

/*
 * Private memory does not come from where movable memory does, which is offered what
 * was private only if there is little else.  So it is a good part of all memory; but
 * some has to be left in the end.  A pool of huge pages has only one place.
 */
#define SECRET_CHUNKS	(backing_is_hugetlb() ? 2ul : 8ul)
#define LEFT		(backing_is_hugetlb() ? 0 : 5 * SZ_8M)
#define NR_PAGES	(SECRET_CHUNKS * CHUNK_PAGES)
#define MAX_PAGES	(8 * CHUNK_PAGES)

/* Where the kernel maps its image, which is in the mapping of all memory as well. */
#define KERNEL_IMAGE	0xffffffff80000000ull

/* Each page has a word of its own, at the places that probe() says; others any word of it. */
static uint64_t secret;

static void new_secret(void)
{
	TEST_ASSERT(getrandom(&secret, sizeof(secret), 0) == sizeof(secret), "getrandom() failed");
	secret &= -MAX_PAGES;
}

static bool is_secret(uint64_t word)
{
	return (word & -MAX_PAGES) == secret;
}

static bool page_has_secret(void *page)
{
	uint64_t word = *probe(page, PAGE_SIZE, 0);

	return is_secret(word) && *probe(page, PAGE_SIZE, 1) == word &&
	       *probe(page, PAGE_SIZE, 2) == word;
}

static uint64_t nr_words_of_secret(const void *p, size_t size)
{
	const uint64_t *word = p;
	uint64_t nr = 0;
	size_t i;

	for (i = 0; i < size / sizeof(*word); i++)
		nr += is_secret(word[i]);
	return nr;
}

/* --- all memory --- */

static int kcore;

/* Of each page with the secret the place in /proc/kcore. */
#define MAX_FOUND	(2 * MAX_PAGES)

static off_t *found;
static uint64_t nr_found;

/* @buf stays clean: it would be found, too. */
static bool secret_is_at(off_t pos)
{
	static char buf[PAGE_SIZE] __aligned(PAGE_SIZE);
	bool has = pread(kcore, buf, PAGE_SIZE, pos) == PAGE_SIZE && page_has_secret(buf);

	memset(buf, 0, sizeof(buf));
	return has;
}

static void search_segment(off_t pos, size_t size, void *buf)
{
	for ( ; size; pos += SZ_1M, size -= min(size, SZ_1M)) {
		ssize_t n = pread(kcore, buf, min(size, SZ_1M), pos), i;

		for (i = 0; i < n; i += PAGE_SIZE) {
			if (!page_has_secret(buf + i))
				continue;
			TEST_ASSERT(nr_found < MAX_FOUND, "The secret is everywhere");
			found[nr_found++] = pos + i;
		}
		memset(buf, 0, SZ_1M);
	}
}

/* Returns the size of memory.  What was found in the buffer of the search isn't there any more. */
static uint64_t search_memory(void)
{
	void *buf = aligned_alloc(PAGE_SIZE, SZ_1M);
	uint64_t i, nr = 0, size = 0;
	struct elf64_hdr ehdr;
	struct elf64_phdr phdr;

	nr_found = 0;
	TEST_ASSERT(buf && pread(kcore, &ehdr, sizeof(ehdr), 0) == sizeof(ehdr),
		    "Can't read /proc/kcore: %s", strerror(errno));
	memset(buf, 0, SZ_1M);
	for (i = 0; i < ehdr.e_phnum; i++) {
		TEST_ASSERT(pread(kcore, &phdr, sizeof(phdr),
				  ehdr.e_phoff + i * sizeof(phdr)) == sizeof(phdr),
			    "Can't read /proc/kcore: %s", strerror(errno));
		if (phdr.p_type != PT_LOAD || phdr.p_paddr == -1ull ||
		    phdr.p_vaddr >= KERNEL_IMAGE)
			continue;
		search_segment(phdr.p_offset, phdr.p_memsz, buf);
		size += phdr.p_memsz;
	}
	free(buf);

	for (i = 0; i < nr_found; i++)
		if (secret_is_at(found[i]))
			found[nr++] = found[i];
	nr_found = nr;
	return size;
}

/* An estimate, or with a step of 1 what it is. */
static uint64_t nr_left(int step)
{
	uint64_t i, nr = 0;

	for (i = 0; i < nr_found; i += step)
		nr += step * secret_is_at(found[i]);
	return nr;
}

/* --- guests --- */

struct guest {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct agent *agent;
	int fd;
};

static struct guest first, other;

/* The file has room for all chunks, and is empty. */
static void guest_create(struct guest *g)
{
	const size_t size = (size_t)MAX_CHUNKS * CHUNK;

	g->vm = vm_create_private(1, agent_code, &g->vcpu);
	g->agent = agent_create(g->vcpu);
	g->agent->unit = PAGE_SIZE;
	g->fd = private_memfd(size);
	vm_add_private(g->vm, PRIVATE_SLOT, PRIVATE_GPA, size, map_no_shared_half(size), g->fd, 0);
	virt_map_level(g->vm, PRIVATE_GPA, PRIVATE_GPA, size, PG_LEVEL_2M);
}

static void guest_write_secret(struct guest *g)
{
	uint64_t i, j;

	new_secret();
	memfd_to_private(g->fd, 0, SECRET_CHUNKS * CHUNK);
	for (i = 0; i < SECRET_CHUNKS; i++) {
		agent_order(g->agent, PRIVATE_GPA + i * CHUNK, CHUNK_PAGES, AGENT_NOTHING, 0);
		for (j = 0; j < CHUNK_PAGES; j++)
			g->agent->page[j].write = secret + i * CHUNK_PAGES + j;
		agent_run(g->vcpu, g->agent);
	}
}

static uint64_t guest_take(struct guest *g, int i)
{
	memfd_to_private(g->fd, (off_t)i * CHUNK, CHUNK);
	agent_order(g->agent, PRIVATE_GPA + (off_t)i * CHUNK, CHUNK_PAGES, 0, 1);
	vcpu_run(g->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(g->vcpu, KVM_EXIT_IO);
	return g->agent->nr_bad;
}

/* --- users of memory: each takes a chunk, and returns how much of the secret it sees --- */

struct user {
	const char *name;
	uint64_t (*take)(int i);
	void (*give_back)(int nr);
	bool hugetlb, small;		/* gets the pages of the one, the other, or both */
};

static void *maps[MAX_CHUNKS];
static int fds[MAX_CHUNKS];

static void *map_chunk(int i, int flags, int fd)
{
	maps[i] = mmap(NULL, CHUNK, PROT_READ | PROT_WRITE, flags, fd, 0);
	TEST_ASSERT(maps[i] != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	return maps[i];
}

static void give_back_maps(int nr)
{
	while (nr--)
		munmap(maps[nr], CHUNK);
}

static void give_back_files(int nr)
{
	give_back_maps(nr);
	while (nr--)
		close(fds[nr]);
}

/* One byte of each page is written, the others are as the kernel gives them. */
static uint64_t take_anonymous_of(int i, int flags)
{
	char *p = map_chunk(i, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1);
	uint64_t page;

	for (page = 0; page < CHUNK_PAGES; page++)
		WRITE_ONCE(p[page * PAGE_SIZE + 100], 1);
	return nr_words_of_secret(p, CHUNK);
}

static uint64_t take_anonymous(int i)
{
	return take_anonymous_of(i, 0);
}

static uint64_t take_huge(int i)
{
	return take_anonymous_of(i, MAP_HUGETLB | MEMFD_HUGE_2MB);
}

/* By read() as well as by a mapping. */
static uint64_t file_take(int i)
{
	void *buf = aligned_alloc(PAGE_SIZE, CHUNK);
	uint64_t nr;

	TEST_ASSERT(buf && pread(fds[i], buf, CHUNK, 0) == CHUNK, "Reading failed: %s",
		    strerror(errno));
	nr = nr_words_of_secret(buf, CHUNK);
	nr += nr_words_of_secret(map_chunk(i, MAP_SHARED, fds[i]), CHUNK);
	free(buf);
	return nr;
}

static void file_create(int i, unsigned int flags)
{
	fds[i] = private_memfd_sized(CHUNK, flags);
}

/* Pages of tmpfs that were never written to. */
static uint64_t take_allocated(int i)
{
	file_create(i, 0);
	memfd_to_private(fds[i], 0, CHUNK);
	return file_take(i);
}

/* ... and such with a byte in them, which is not the first one. */
static uint64_t take_written(int i)
{
	uint64_t page;

	file_create(i, 0);
	for (page = 0; page < CHUNK_PAGES; page++)
		TEST_ASSERT(pwrite(fds[i], "x", 1, page * PAGE_SIZE + 100) == 1,
			    "Writing failed: %s", strerror(errno));
	return file_take(i);
}

static uint64_t take_huge_file(int i)
{
	file_create(i, MFD_HUGETLB | MEMFD_HUGE_2MB);
	memfd_to_private(fds[i], 0, CHUNK);
	return file_take(i);
}

static uint64_t take_again(int i)
{
	return guest_take(&first, i);
}

static void give_back_again(int nr)
{
	memfd_to_shared(first.fd, 0, (off_t)nr * CHUNK);
}

static uint64_t take_other(int i)
{
	return guest_take(&other, i);
}

static void give_back_other(int nr)
{
	memfd_to_shared(other.fd, 0, (off_t)nr * CHUNK);
}

/* What is in a pipe can be read as far as it was written: nobody sees the rest of its pages. */
static const struct user users[] = {
	{ "anonymous memory", take_anonymous, give_back_maps, .small = true },
	{ "a file, allocated", take_allocated, give_back_files, .small = true },
	{ "a file, written in part", take_written, give_back_files, .small = true },
	{ "a mapping of huge pages", take_huge, give_back_maps, .hugetlb = true },
	{ "a file of huge pages", take_huge_file, give_back_files, .hugetlb = true },
	{ "the same guest", take_again, give_back_again, true, true },
	{ "the guest of another VM", take_other, give_back_other, true, true },
};

static bool concerned(const struct user *user)
{
	return backing_is_hugetlb() ? user->hugetlb : user->small;
}

static uint64_t free_bytes(void)
{
	if (backing_is_hugetlb())
		return read_number("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") *
			SZ_2M;
	return sysconf(_SC_AVPHYS_PAGES) * PAGE_SIZE;
}

static void recycle(const struct user *user)
{
	const uint64_t enough = NR_PAGES / 2;
	uint64_t size, left, seen;
	int nr;

	guest_write_secret(&first);
	size = search_memory();
	TEST_ASSERT(nr_found == NR_PAGES, "The secret is in %lu pages of %lu MiB, of %lu", nr_found,
		    size / SZ_1M, NR_PAGES);

	/* A page that is free keeps what it had. */
	memfd_to_shared(first.fd, 0, SECRET_CHUNKS * CHUNK);
	left = nr_left(1);
	TEST_ASSERT(left > NR_PAGES / 4 * 3, "After the punch the secret is in %lu pages of %lu",
		    left, NR_PAGES);

	for (nr = 0; nr < MAX_CHUNKS && free_bytes() >= LEFT + CHUNK && left > enough;
	     left = nr_left(64)) {
		seen = user->take(nr++);
		TEST_ASSERT(!seen, "%s: %lu words of the secret, or not zero", user->name, seen);
	}
	left = nr_left(1);
	user->give_back(nr);
	TEST_ASSERT(left < NR_PAGES / 4 * 3, "%s: %lu pages of %lu are not used again after %d MiB",
		    user->name, left, NR_PAGES, nr * CHUNK / SZ_1M);
	ksft_test_result_pass("%s: has got %lu of %lu pages, in %d MiB\n", user->name,
			      NR_PAGES - left, NR_PAGES, nr * CHUNK / SZ_1M);
}

int main(int argc, char *argv[])
{
	int i, nr = 0;

	require_private_mem();
	TEST_REQUIRE(UNIT <= CHUNK);
	found = calloc(MAX_FOUND, sizeof(*found));
	kcore = open("/proc/kcore", O_RDONLY);
	__TEST_REQUIRE(found && kcore >= 0, "There is no /proc/kcore (CONFIG_PROC_KCORE)");

	ksft_print_header();
	for (i = 0; i < ARRAY_SIZE(users); i++)
		nr += concerned(&users[i]);
	ksft_set_plan(nr);
	guest_create(&first);
	guest_create(&other);
	for (i = 0; i < ARRAY_SIZE(users); i++)
		if (concerned(&users[i]))
			recycle(&users[i]);
	kvm_vm_free(first.vm);
	kvm_vm_free(other.vm);
	close(first.fd);
	close(other.fd);
	close(kcore);
	ksft_finished();
}
