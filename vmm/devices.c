// SPDX-License-Identifier: GPL-2.0
/*
 * What a stock kernel finds on a PC without a bus: a 16550 serial port, the
 * power-off and reset registers of acpi.c, the keyboard controller's reset
 * line; and the ports of guest/abi.h.
 */
#include <linux/serial_reg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vmm.h"

#define KEYBOARD_STATUS	0x64
#define KEYBOARD_DATA	0x60
#define KEYBOARD_RESET	0xfe
#define CMOS_DATA	0x71
#define DATA_MAX	(64UL << 10)
#define PM1_SLEEP_ENABLE	(1U << 13)
#define PM1_SCI_ENABLE	(1U << 0)

void devices_init(struct devices *dev)
{
	*dev = (struct devices){ .vm = -1 };
	pthread_mutex_init(&dev->lock, NULL);
	dev->serial.thr_empty = true;
}

void devices_destroy(struct devices *dev)
{
	free(dev->data);
	dev->data = NULL;
}

/* --- text from the guest --- */

static void end_line(struct devices *dev)
{
	printf("  guest: %.*s\n", (int)dev->line_len, dev->line);
	dev->line_len = 0;
}

static void console(struct devices *dev, char c)
{
	if (c == '\r')
		return;
	if (c == '\n') {
		end_line(dev);
		return;
	}
	if (dev->line_len == sizeof(dev->line))
		end_line(dev);
	dev->line[dev->line_len++] = (c >= ' ' && c <= '~') || c == '\t' ? c : '?';
}

/* --- the serial port --- */

static void serial_interrupt(struct devices *dev)
{
	struct serial *s = &dev->serial;
	const bool in = s->ier & UART_IER_RDI && s->head != s->tail;
	const bool out = s->ier & UART_IER_THRI && s->thr_empty;
	struct kvm_irq_level irq = { .irq = SERIAL_IRQ, .level = in || out };

	if (dev->vm < 0 || (int)irq.level == s->line)
		return;
	s->line = irq.level;
	if (ioctl(dev->vm, KVM_IRQ_LINE, &irq))
		failed("KVM_IRQ_LINE");
}

static bool serial_divisor(const struct serial *s)
{
	return s->lcr & UART_LCR_DLAB;
}

static __u8 serial_pending(struct serial *s)
{
	if (s->ier & UART_IER_RDI && s->head != s->tail)
		return UART_IIR_RDI;
	if (s->ier & UART_IER_THRI && s->thr_empty) {
		s->thr_empty = false;	/* told */
		return UART_IIR_THRI;
	}
	return UART_IIR_NO_INT;
}

static __u8 serial_status(const struct serial *s)
{
	/* Connected to itself, as drivers do to see whether there is one. */
	if (s->mcr & UART_MCR_LOOP)
		return (s->mcr & UART_MCR_RTS ? UART_MSR_CTS : 0) |
		       (s->mcr & UART_MCR_DTR ? UART_MSR_DSR : 0) |
		       (s->mcr & UART_MCR_OUT1 ? UART_MSR_RI : 0) |
		       (s->mcr & UART_MCR_OUT2 ? UART_MSR_DCD : 0);
	return UART_MSR_CTS | UART_MSR_DSR | UART_MSR_DCD;
}

static __u8 serial_in(struct devices *dev, unsigned int reg)
{
	struct serial *s = &dev->serial;
	__u8 val = 0;

	switch (reg) {
	case UART_RX:
		if (serial_divisor(s))
			return s->dll;
		if (s->head != s->tail) {
			val = s->queue[s->head++ % SERIAL_QUEUE];
			dev->serial_in++;
		}
		break;
	case UART_IER:
		return serial_divisor(s) ? s->dlm : s->ier;
	case UART_IIR:
		val = serial_pending(s) | (s->fcr & UART_FCR_ENABLE_FIFO ? 0xc0 : 0);
		break;
	case UART_LCR:
		return s->lcr;
	case UART_MCR:
		return s->mcr;
	case UART_LSR:
		return UART_LSR_TEMT | UART_LSR_THRE | (s->head != s->tail ? UART_LSR_DR : 0);
	case UART_MSR:
		return serial_status(s);
	case UART_SCR:
		return s->scr;
	}
	serial_interrupt(dev);
	return val;
}

static void serial_transmit(struct devices *dev, __u8 val)
{
	struct serial *s = &dev->serial;

	if (s->mcr & UART_MCR_LOOP)
		return;
	dev->serial_out++;
	console(dev, val);
	/* Full for no time, but the interrupt is an edge. */
	s->thr_empty = false;
	serial_interrupt(dev);
	s->thr_empty = true;
}

static void serial_out(struct devices *dev, unsigned int reg, __u8 val)
{
	struct serial *s = &dev->serial;

	switch (reg) {
	case UART_TX:
		if (serial_divisor(s))
			s->dll = val;
		else
			serial_transmit(dev, val);
		break;
	case UART_IER:
		if (serial_divisor(s)) {
			s->dlm = val;
			break;
		}
		if (~s->ier & val & UART_IER_THRI)
			s->thr_empty = true;
		s->ier = val & 0xf;
		break;
	case UART_FCR:
		s->fcr = val;
		if (val & UART_FCR_CLEAR_RCVR)
			s->head = s->tail;
		break;
	case UART_LCR:
		s->lcr = val;
		break;
	case UART_MCR:
		s->mcr = val & 0x1f;
		break;
	case UART_SCR:
		s->scr = val;
		break;
	}
	serial_interrupt(dev);
}

void devices_type(struct devices *dev, const void *bytes, size_t len)
{
	struct serial *s = &dev->serial;
	const __u8 *p = bytes;

	pthread_mutex_lock(&dev->lock);
	for (; len && s->tail - s->head < SERIAL_QUEUE; len--)
		s->queue[s->tail++ % SERIAL_QUEUE] = *p++;
	serial_interrupt(dev);
	pthread_mutex_unlock(&dev->lock);
}

/* --- data of the guest's --- */

static void take_data(struct devices *dev, const void *from, unsigned int size)
{
	if (!dev->data)
		dev->data = malloc(DATA_MAX);
	/* A guest that sends too much loses the rest. */
	if (!dev->data || dev->data_len + size > DATA_MAX)
		return;
	memcpy(dev->data + dev->data_len, from, size);
	dev->data_len += size;
}

void *devices_take_data(struct devices *dev, size_t *len)
{
	void *data;

	pthread_mutex_lock(&dev->lock);
	data = dev->data;
	*len = dev->data_len;
	dev->data = NULL;
	dev->data_len = 0;
	pthread_mutex_unlock(&dev->lock);
	return data;
}

/* --- ports --- */

static __u32 number(const void *data, unsigned int size)
{
	__u32 val = 0;

	memcpy(&val, data, size);
	return val;
}

static enum vm_event ended(struct devices *dev, enum vm_event event, const char *how)
{
	dev->how = how;
	return event;
}

static enum vm_event power(struct devices *dev, __u16 val)
{
	dev->pm1_control = val & ~PM1_SLEEP_ENABLE;
	if (val & PM1_SLEEP_ENABLE && (val >> 10 & 7) == SLEEP_TYPE_OFF)
		return ended(dev, VM_POWER_OFF, "ACPI");
	return VM_CONTINUE;
}

static enum vm_event out(struct devices *dev, __u16 port, const void *data, unsigned int size)
{
	const __u32 val = number(data, size);

	switch (port) {
	case SERIAL_PORT ... SERIAL_PORT + 7:
		serial_out(dev, port - SERIAL_PORT, val);
		break;
	case PORT_CONSOLE:
		console(dev, val);
		break;
	case PORT_DATA:
		take_data(dev, data, size);
		break;
	case PORT_STEP:
		dev->step = val;
		return VM_STEP;
	case PORT_EXIT:
		dev->exit_code = val;
		return ended(dev, VM_LEFT, "the exit port");
	case ACPI_PM1_EVENT + 2:
		dev->pm1_enable = val;
		break;
	case ACPI_PM1_CONTROL:
		return power(dev, val);
	case RESET_PORT:
		if (val & 4)
			return ended(dev, VM_RESET, "the reset register");
		break;
	case KEYBOARD_STATUS:
		if (val == KEYBOARD_RESET)
			return ended(dev, VM_RESET, "the keyboard controller");
		break;
	}
	return VM_CONTINUE;	/* whatever it was, it is not there */
}

static __u32 in(struct devices *dev, __u16 port)
{
	switch (port) {
	case SERIAL_PORT ... SERIAL_PORT + 7:
		return serial_in(dev, port - SERIAL_PORT);
	case ACPI_PM1_EVENT:
		return 0;
	case ACPI_PM1_EVENT + 2:
		return dev->pm1_enable;
	case ACPI_PM1_CONTROL:
		return dev->pm1_control | PM1_SCI_ENABLE;
	case KEYBOARD_STATUS:	/* ready for a command, nothing to say */
	case KEYBOARD_DATA:
	case CMOS_DATA:		/* not being updated */
		return 0;
	}
	return ~0U;
}

enum vm_event devices_out(struct devices *dev, __u16 port, const void *data, unsigned int size)
{
	enum vm_event event;

	pthread_mutex_lock(&dev->lock);
	dev->pio++;
	event = out(dev, port, data, size);
	pthread_mutex_unlock(&dev->lock);
	return event;
}

void devices_in(struct devices *dev, __u16 port, void *data, unsigned int size)
{
	__u32 val;

	pthread_mutex_lock(&dev->lock);
	dev->pio++;
	val = in(dev, port);
	pthread_mutex_unlock(&dev->lock);
	memcpy(data, &val, size);
}
