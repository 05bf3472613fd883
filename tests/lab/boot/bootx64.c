/* An EFI application: reads some of the disk that it was loaded from, writes one sector, and says
 * on the first serial port how it went, in the words and with the constants of mbr.S.
 *
 * Built as a flat binary that runs at any address; the lab puts the PE header in front. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define EFI __attribute__((ms_abi))

struct guid { u32 a; u16 b, c; u8 d[8]; };
struct boot_services {
    u8 before[0x98];
    u64 (EFI *handle_protocol)(void *handle, const struct guid *, void **interface);
};
struct system_table {
    u8 before[0x60];
    struct boot_services *boot;
};
struct loaded_image {
    u8 before[24];
    void *device;
};
struct media {
    u32 id;
    u8 flags[8];
    u32 block_size;
};
struct block_io {
    u64 revision;
    struct media *media;
    void *reset;
    u64 (EFI *read)(struct block_io *, u32 media, u64 lba, u64 bytes, void *);
    u64 (EFI *write)(struct block_io *, u32 media, u64 lba, u64 bytes, const void *);
    u64 (EFI *flush)(struct block_io *);
};

static const struct guid LOADED_IMAGE = {
    0x5b1b31a1, 0x9562, 0x11d2, {0x8e, 0x3f, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
static const struct guid BLOCK_IO = {
    0x964e5b21, 0x6459, 0x11d2, {0x8e, 0x39, 0x00, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};

static u8 buffer[COUNT * 512] __attribute__((aligned(4096)));

static void out(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static u8 in(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void print(const char *text)
{
    for (; *text; text++) {
        while (!(in(0x3fd) & 0x20)) { }
        out(0x3f8, *text);
    }
}

static void hexadecimal(u64 value, int digits)
{
    while (digits--) {
        char text[2] = {"0123456789ABCDEF"[value >> (4 * digits) & 15], 0};
        print(text);
    }
}

static void finish(void)
{
    print("\n");
    for (;;)
        out(0xf4, 0);
}

static void check(u64 status)
{
    if (status) {
        print("\nLAB fault ");
        hexadecimal(status, 16);
        finish();
    }
}

__attribute__((section(".text.first"))) EFI u64 start(void *image, struct system_table *system)
{
    struct loaded_image *loaded;
    struct block_io *disk;
    u32 sum = 0;

    print("\nLAB up\n");
    check(system->boot->handle_protocol(image, &LOADED_IMAGE, (void **)&loaded));
    check(system->boot->handle_protocol(loaded->device, &BLOCK_IO, (void **)&disk));
    check(disk->media->block_size != 512);
    for (u64 run = 0; run < RUNS; run++) {
        check(disk->read(disk, disk->media->id, FIRST + run * STRIDE, sizeof buffer, buffer));
        for (u64 at = 0; at < sizeof buffer; at++)
            sum += buffer[at];
    }
    print("LAB sum ");
    hexadecimal(sum, 8);

    u8 *last = buffer + sizeof buffer - 512;
    for (u64 at = 0; at < 512; at++)
        last[at] = ~last[at];
    check(disk->write(disk, disk->media->id, TARGET, 512, last));
    check(disk->flush(disk));
    print("\nLAB end");
    finish();
    return 0;
}
