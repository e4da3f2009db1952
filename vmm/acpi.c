// SPDX-License-Identifier: GPL-2.0
/*
 * The least of ACPI that a stock kernel needs to find its processors and to
 * turn itself off: RSDP, XSDT, FADT with FACS and DSDT, MADT.
 */
#include <string.h>

#include "vmm.h"

#define __packed	__attribute__((packed))

struct rsdp {
	char signature[8];
	__u8 checksum;
	char oem[6];
	__u8 revision;
	__u32 rsdt;
	__u32 length;
	__u64 xsdt;
	__u8 extended_checksum;
	__u8 reserved[3];
} __packed;

struct header {
	char signature[4];
	__u32 length;
	__u8 revision;
	__u8 checksum;
	char oem[6];
	char oem_table[8];
	__u32 oem_revision;
	char creator[4];
	__u32 creator_revision;
} __packed;

struct gas {
	__u8 space;		/* 1: ports */
	__u8 bits, offset, access;
	__u64 address;
} __packed;

struct fadt {
	struct header h;
	__u32 facs, dsdt;
	__u8 reserved1, profile;
	__u16 sci;
	__u32 smi_command;
	__u8 acpi_enable, acpi_disable, s4bios, pstate;
	__u32 pm1a_event, pm1b_event, pm1a_control, pm1b_control, pm2_control;
	__u32 pm_timer, gpe0, gpe1;
	__u8 pm1_event_len, pm1_control_len, pm2_control_len, pm_timer_len;
	__u8 gpe0_len, gpe1_len, gpe1_base, cstate;
	__u16 c2_latency, c3_latency, flush_size, flush_stride;
	__u8 duty_offset, duty_width, day_alarm, month_alarm, century;
	__u16 boot_arch;
	__u8 reserved2;
	__u32 flags;
	struct gas reset;
	__u8 reset_value;
	__u16 arm_boot_arch;
	__u8 minor;
	__u64 x_facs, x_dsdt;
	struct gas x_pm1a_event, x_pm1b_event, x_pm1a_control, x_pm1b_control;
	struct gas x_pm2_control, x_pm_timer, x_gpe0, x_gpe1;
	struct gas sleep_control, sleep_status;
	__u64 hypervisor;
} __packed;

#define FADT_WBINVD		(1U << 0)
#define FADT_NO_POWER_BUTTON	(1U << 4)
#define FADT_NO_SLEEP_BUTTON	(1U << 5)
#define FADT_RESET_REGISTER	(1U << 10)

#define BOOT_ARCH_LEGACY	(1U << 0)	/* there is a serial port */
#define BOOT_ARCH_NO_VGA	(1U << 2)
#define BOOT_ARCH_NO_CMOS	(1U << 5)

struct facs {
	char signature[4];
	__u32 length;
	__u8 rest[56];
} __packed;

struct madt {
	struct header h;
	__u32 local_apic;
	__u32 flags;		/* 1: there are PICs, too */
} __packed;

struct madt_cpu {
	__u8 type, length, processor, apic;
	__u32 flags;
} __packed;

struct madt_ioapic {
	__u8 type, length, id, reserved;
	__u32 address, first;
} __packed;

struct madt_override {
	__u8 type, length, bus, irq;
	__u32 gsi;
	__u16 flags;
} __packed;

#define LOCAL_APIC	0xfee00000U
#define IO_APIC		0xfec00000U

/* Name (_S5, Package () { SLEEP_TYPE_OFF, SLEEP_TYPE_OFF, 0, 0 }) */
static const __u8 aml[] = {
	0x08, '_', 'S', '5', '_', 0x12, 0x08, 0x04,
	0x0a, SLEEP_TYPE_OFF, 0x0a, SLEEP_TYPE_OFF, 0x00, 0x00,
};

struct builder {
	__u8 *start, *next;
};

static __u64 gpa_of(const struct builder *b, const void *p)
{
	return ACPI_GPA + ((const __u8 *)p - b->start);
}

static void *take(struct builder *b, size_t len)
{
	void *p = b->next;

	memset(p, 0, len);
	b->next += len;
	return p;
}

static __u8 checksum(const void *data, size_t len)
{
	const __u8 *p = data;
	__u8 sum = 0;

	while (len--)
		sum -= *p++;
	return sum;
}

static void *begin(struct builder *b, size_t len, const char *signature, __u8 revision)
{
	struct header *h;

	b->next = b->start + ((b->next - b->start + 63) & ~63L);	/* as FACS wants it */
	h = take(b, len);
	memcpy(h->signature, signature, 4);
	h->revision = revision;
	memcpy(h->oem, "VMM   ", 6);
	memcpy(h->oem_table, "PRIVATE ", 8);
	memcpy(h->creator, "VMM ", 4);
	return h;
}

static __u64 end(struct builder *b, struct header *h)
{
	h->length = b->next - (__u8 *)h;
	h->checksum = checksum(h, h->length);
	return gpa_of(b, h);
}

static struct gas port(__u16 address, __u8 bits)
{
	return (struct gas){
		.space = 1, .bits = bits, .access = bits / 8 < 3 ? bits / 8 : 3, .address = address,
	};
}

static __u64 make_facs(struct builder *b)
{
	struct facs *facs;

	b->next = b->start + ((b->next - b->start + 63) & ~63L);
	facs = take(b, sizeof(*facs));
	memcpy(facs->signature, "FACS", 4);
	facs->length = sizeof(*facs);
	return gpa_of(b, facs);
}

static __u64 make_dsdt(struct builder *b)
{
	struct header *h = begin(b, sizeof(*h), "DSDT", 2);

	memcpy(take(b, sizeof(aml)), aml, sizeof(aml));
	return end(b, h);
}

static __u64 make_fadt(struct builder *b)
{
	__u64 facs = make_facs(b), dsdt = make_dsdt(b);
	struct fadt *f = begin(b, sizeof(*f), "FACP", 6);

	f->facs = facs;
	f->dsdt = f->x_dsdt = dsdt;
	f->sci = ACPI_SCI;
	f->pm1a_event = ACPI_PM1_EVENT;
	f->pm1_event_len = 4;
	f->x_pm1a_event = port(ACPI_PM1_EVENT, 32);
	f->pm1a_control = ACPI_PM1_CONTROL;
	f->pm1_control_len = 2;
	f->x_pm1a_control = port(ACPI_PM1_CONTROL, 16);
	f->c2_latency = f->c3_latency = 0xffff;		/* no such states */
	f->boot_arch = BOOT_ARCH_LEGACY | BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_CMOS;
	f->flags = FADT_WBINVD | FADT_NO_POWER_BUTTON | FADT_NO_SLEEP_BUTTON | FADT_RESET_REGISTER;
	f->reset = port(RESET_PORT, 8);
	f->reset_value = RESET_VALUE;
	return end(b, &f->h);
}

static __u64 make_madt(struct builder *b, unsigned int nr_vcpus)
{
	struct madt *m = begin(b, sizeof(*m), "APIC", 4);
	unsigned int i;

	m->local_apic = LOCAL_APIC;
	m->flags = 1;
	for (i = 0; i < nr_vcpus; i++)
		*(struct madt_cpu *)take(b, sizeof(struct madt_cpu)) = (struct madt_cpu){
			.type = 0, .length = sizeof(struct madt_cpu),
			.processor = i, .apic = i, .flags = 1,
		};
	*(struct madt_ioapic *)take(b, sizeof(struct madt_ioapic)) = (struct madt_ioapic){
		.type = 1, .length = sizeof(struct madt_ioapic), .address = IO_APIC,
	};
	/* Level-triggered, active high: the default is low. */
	*(struct madt_override *)take(b, sizeof(struct madt_override)) = (struct madt_override){
		.type = 2, .length = sizeof(struct madt_override),
		.irq = ACPI_SCI, .gsi = ACPI_SCI, .flags = 0xd,
	};
	return end(b, &m->h);
}

size_t acpi_tables(void *buf, unsigned int nr_vcpus)
{
	struct builder b = { .start = buf, .next = buf };
	struct rsdp *rsdp = take(&b, sizeof(*rsdp));
	__u64 fadt = make_fadt(&b), madt = make_madt(&b, nr_vcpus);
	struct header *xsdt = begin(&b, sizeof(*xsdt), "XSDT", 1);

	memcpy(take(&b, sizeof(fadt)), &fadt, sizeof(fadt));
	memcpy(take(&b, sizeof(madt)), &madt, sizeof(madt));
	memcpy(rsdp->signature, "RSD PTR ", 8);
	memcpy(rsdp->oem, "VMM   ", 6);
	rsdp->revision = 2;
	rsdp->length = sizeof(*rsdp);
	rsdp->xsdt = end(&b, xsdt);
	rsdp->checksum = checksum(rsdp, 20);	/* of its first version */
	rsdp->extended_checksum = checksum(rsdp, sizeof(*rsdp));
	return b.next - b.start;
}
