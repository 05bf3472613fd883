# A boot sector for a PC BIOS: reads some of its disk with INT 13h, writes one sector, and says on
# the first serial port how it went. The lab assembles it with these constants:
#   FIRST COUNT RUNS STRIDE   RUNS times COUNT sectors are read, STRIDE sectors apart, from FIRST on
#   TARGET                    the sector that is written: the last one read, every byte inverted
# It says "LAB sum XXXXXXXX", the sum of all bytes read, and "LAB end", or "LAB fault XX" with the
# BIOS's error code. Then it ends QEMU through isa-debug-exit at port 0xf4.
.code16
.globl _start
_start:
    ljmp $0, $begin
begin:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7c00, %sp
    cld
    mov %dl, drive
    mov $up, %si
    call print

    mov $RUNS, %cx
each_run:
    push %cx
    mov $0x42, %ah
    call disk
    # The buffer is at 0x1000:0, at most 64 KiB.
    mov $0x1000, %ax
    mov %ax, %es
    xor %di, %di
    mov $(COUNT * 128), %cx
    mov sum, %ebx
each_word:
    mov %es:(%di), %edx
    movzx %dl, %eax
    add %eax, %ebx
    movzx %dh, %eax
    add %eax, %ebx
    shr $16, %edx
    movzx %dl, %eax
    add %eax, %ebx
    movzx %dh, %eax
    add %eax, %ebx
    add $4, %di
    loop each_word
    mov %ebx, sum
    addl $STRIDE, sector
    pop %cx
    loop each_run

    mov $sum_is, %si
    call print
    mov sum, %ebx
    mov $8, %cx
    call hexadecimal

    mov $((COUNT - 1) * 512), %di
    mov $128, %cx
invert:
    notl %es:(%di)
    add $4, %di
    loop invert
    movw $1, count
    movw $((COUNT - 1) * 512), offset
    movl $TARGET, sector
    mov $0x4300, %ax
    call disk
    mov $done, %si
    call print
    jmp finish

# INT 13h with the function in %ah and the packet below.
disk:
    mov $packet, %si
    mov drive, %dl
    int $0x13
    jc failed
    ret
failed:
    mov %ah, %bl
    shl $24, %ebx
    mov $fault, %si
    call print
    mov $2, %cx
    call hexadecimal
finish:
    mov $0x0a, %al
    call put
    mov $0xf4, %dx
    out %al, %dx
    hlt
    jmp finish

# The upper %cx digits of %ebx.
hexadecimal:
    rol $4, %ebx
    mov %bl, %al
    and $15, %al
    cmp $10, %al
    sbb $0x69, %al
    das
    call put
    loop hexadecimal
    ret

# The text at %si, which ends with a zero.
print:
    lodsb
    test %al, %al
    jz 1f
    call put
    jmp print
1:  ret

put:
    push %dx
    mov %al, %ah
    mov $0x3fd, %dx
1:  in %dx, %al
    test $0x20, %al
    jz 1b
    mov %ah, %al
    mov $0x3f8, %dx
    out %al, %dx
    pop %dx
    ret

up:     .asciz "\nLAB up\n"
sum_is: .asciz "LAB sum "
done:   .asciz "\nLAB end"
fault:  .asciz "\nLAB fault "
drive:  .byte 0
    .balign 4
sum:    .long 0
packet: .byte 16, 0
count:  .word COUNT
offset: .word 0, 0x1000
sector: .long FIRST, 0
    .org 510
    .word 0xaa55
