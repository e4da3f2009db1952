// SPDX-License-Identifier: GPL-2.0
/*
 * Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst). All that is
 * put into RAM here is put there before the file is sealed, straight from the
 * page cache of the image: there is no copy of it in this process.
 */
#include <asm/bootparam.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm.h"

/* In the first 640 KiB, which the kernel takes over once it has read them. */
#define GDT_GPA		0x1000UL
#define PARAMS_GPA	0x7000UL	/* "the zero page" */
#define CMDLINE_GPA	0x8000UL
#define TABLES_GPA	0x9000UL	/* PML4, PDPT, four page directories */
#define TABLES		6
#define LOW_END		0x9fc00UL
#define HIGH_START	0x100000UL

#define BOOT_FLAG	0xaa55
#define HEADER_MAGIC	0x53726448U	/* "HdrS" */
#define HEADER_VERSION	0x20c		/* the first with 64-bit entry points */
#define ENTRY_64	0x200
#define SECTOR		512UL
#define LOADER_UNKNOWN	0xff

struct file {
	const char *path;
	const __u8 *data;
	size_t len;
};

static int file_open(struct file *file, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *p;

	*file = (struct file){ .path = path };
	if (fd < 0)
		return failed("%s", path);
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || !st.st_size) {
		close(fd);
		return refused("%s: not a file, or empty", path);
	}
	p = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (p == MAP_FAILED)
		return failed("mapping %s", path);
	file->data = p;
	file->len = st.st_size;
	return 0;
}

static void file_close(struct file *file)
{
	if (file->data)
		munmap((void *)file->data, file->len);
}

/* --- the kernel --- */

static size_t setup_len(const struct setup_header *h)
{
	return ((h->setup_sects ?: 4) + 1) * SECTOR;
}

/* Copy the header out of the image, whatever length it says to have. */
static int read_header(const struct file *kernel, struct setup_header *h)
{
	const size_t start = offsetof(struct boot_params, hdr);
	size_t len, payload;

	memset(h, 0, sizeof(*h));
	if (kernel->len < start + sizeof(*h))
		return refused("%s: too short to be a kernel", kernel->path);
	/* The operand of the jump at 0x200 says where it ends. */
	len = 0x202 + kernel->data[0x201] - start;
	memcpy(h, kernel->data + start, MIN(len, sizeof(*h)));
	if (h->boot_flag != BOOT_FLAG || h->header != HEADER_MAGIC)
		return refused("%s: not a bzImage", kernel->path);
	if (h->version < HEADER_VERSION || !(h->xloadflags & XLF_KERNEL_64))
		return refused("%s: boot protocol %x.%02x, no 64-bit entry", kernel->path,
			       h->version >> 8, h->version & 0xff);
	payload = h->syssize * 16UL;
	if (!payload || kernel->len < setup_len(h) + payload)
		return refused("%s: truncated, %zu of %zu bytes", kernel->path, kernel->len,
			       setup_len(h) + payload);
	return 0;
}

/* The end of what is below 4 GiB. */
static __u64 low_end(const struct ram *ram)
{
	return MIN(ram->config.size, RAM_HOLE_START);
}

static int load_kernel(struct ram *ram, const struct file *kernel, const struct setup_header *h)
{
	__u64 need = h->pref_address + h->init_size;

	if (need > low_end(ram))
		return refused("%s needs %llu MiB of RAM", kernel->path, (need >> 20) + 1);
	return ram_fill(ram, h->pref_address, kernel->data + setup_len(h), h->syssize * 16UL);
}

/* As high as the kernel allows, so that it is out of its way. */
static int load_initrd(struct ram *ram, const struct file *initrd, struct setup_header *h)
{
	__u64 top = MIN(low_end(ram), h->initrd_addr_max + 1UL);
	__u64 gpa = (top - initrd->len) & -PAGE_SIZE;

	if (initrd->len > top || gpa < h->pref_address + h->init_size)
		return refused("%s does not fit into RAM", initrd->path);
	h->ramdisk_image = gpa;
	h->ramdisk_size = initrd->len;
	return ram_fill(ram, gpa, initrd->data, initrd->len);
}

/* --- what goes with it --- */

static void add_e820(struct boot_params *bp, __u64 start, __u64 end, __u32 type)
{
	if (start < end)
		bp->e820_table[bp->e820_entries++] = (struct boot_e820_entry){
			.addr = start, .size = end - start, .type = type,
		};
}

static int fill_params(struct ram *ram, const struct setup_header *h)
{
	const __u64 high = RAM_HOLE_END + ram->config.size - low_end(ram);
	static struct boot_params bp;

	memset(&bp, 0, sizeof(bp));
	bp.hdr = *h;
	bp.hdr.type_of_loader = LOADER_UNKNOWN;
	bp.hdr.vid_mode = 0xffff;
	bp.hdr.cmd_line_ptr = CMDLINE_GPA;
	bp.acpi_rsdp_addr = ACPI_GPA;
	/* 1: RAM, 2: reserved. What is reserved here has memory, too. */
	add_e820(&bp, 0, LOW_END, 1);
	add_e820(&bp, LOW_END, HIGH_START, 2);
	add_e820(&bp, HIGH_START, low_end(ram), 1);
	add_e820(&bp, RAM_HOLE_END, high, 1);
	return ram_fill(ram, PARAMS_GPA, &bp, sizeof(bp));
}

/* The first 4 GiB, mapped to themselves in pages of 2 MiB. */
static int fill_tables(struct ram *ram, struct entry *entry)
{
	static const __u64 gdt[] = {
		0, 0,
		0x00af9b000000ffff,	/* __BOOT_CS: 64-bit code */
		0x00cf93000000ffff,	/* __BOOT_DS */
	};
	static __u64 tables[TABLES][512];
	int i;

	tables[0][0] = (TABLES_GPA + PAGE_SIZE) | 3;
	for (i = 0; i < 4; i++)
		tables[1][i] = (TABLES_GPA + (2 + i) * PAGE_SIZE) | 3;
	for (i = 0; i < 4 * 512; i++)
		tables[2 + i / 512][i % 512] = i * HUGE_SIZE | 0x83;
	entry->cr3 = TABLES_GPA;
	entry->gdt = GDT_GPA;
	entry->gdt_limit = sizeof(gdt) - 1;
	return ram_fill(ram, GDT_GPA, gdt, sizeof(gdt)) ||
	       ram_fill(ram, TABLES_GPA, tables, sizeof(tables)) ? -1 : 0;
}

static int fill_acpi(struct ram *ram, unsigned int nr_vcpus)
{
	static __u8 buf[ACPI_MAX];

	return ram_fill(ram, ACPI_GPA, buf, acpi_tables(buf, nr_vcpus));
}

static int load(struct ram *ram, const struct boot_config *config, const struct file *kernel,
		const struct file *initrd, struct entry *entry)
{
	struct setup_header h;

	if (read_header(kernel, &h))
		return -1;
	if (strlen(config->cmdline) > MIN(h.cmdline_size, PAGE_SIZE - 1))
		return refused("the command line is longer than %u bytes", h.cmdline_size);
	if (load_kernel(ram, kernel, &h) || load_initrd(ram, initrd, &h) ||
	    fill_params(ram, &h) || fill_tables(ram, entry) || fill_acpi(ram, config->nr_vcpus))
		return -1;
	entry->long_mode = true;
	entry->rip = h.pref_address + ENTRY_64;
	entry->rsi = PARAMS_GPA;
	return ram_fill(ram, CMDLINE_GPA, config->cmdline, strlen(config->cmdline) + 1);
}

int boot_load(struct ram *ram, const struct boot_config *config, struct entry *entry)
{
	struct file kernel = { 0 }, initrd = { 0 };
	int ret;

	*entry = (struct entry){ 0 };
	ret = file_open(&kernel, config->kernel) || file_open(&initrd, config->initrd) ||
	      load(ram, config, &kernel, &initrd, entry) ? -1 : 0;
	file_close(&kernel);
	file_close(&initrd);
	return ret;
}
