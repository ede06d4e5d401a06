# From the loader to Rust code at CPL 3, and from an exception back to it.
#
# Some KVMs emulate everything outside CPL 3, slowly and not completely, and nothing here needs
# privilege once the tables are loaded. So this file does the least that must be done at CPL 0.
#
# Entry, 32-bit protected mode, flat segments, paging off:
#   first vCPU: EBX = hvm_start_info (the PVH boot protocol);
#   the others: EBX = 0, EDI = index of the vCPU.

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18                      # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

    .section .text.entry, "ax", @progbits
    .code32
    .global pvh_entry
pvh_entry:
    cld
    testl %ebx, %ebx
    jz 1f
    xorl %edi, %edi
1:  movl $0x620, %eax                   # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $page_map, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx              # EFER
    rdmsr
    orl $0x100, %eax                    # LME
    wrmsr
    movl $0x80000033, %eax              # PG, NE, ET, MP, PE
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $long_entry

    .code64
long_entry:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %edi, %edi                     # clear the upper halves, which are undefined
    movl %ebx, %esi

    # Task state of this vCPU: its stack for exceptions and its descriptor.
    movl %edi, %eax
    shll $8, %eax
    addl $task_states, %eax             # RAX = this vCPU's TSS
    leal 1(%edi), %ecx
    shll $9, %ecx
    addl $exception_stacks, %ecx
    movq %rcx, 4(%rax)                  # RSP0
    movq %rcx, %rsp
    movl %edi, %ecx
    shll $4, %ecx
    leal task_descriptors(%ecx), %edx   # RDX = its descriptor
    movw $0xff, (%rdx)                  # limit: 256 bytes
    movw %ax, 2(%rdx)
    shrl $16, %eax
    movb %al, 4(%rdx)
    movb $0x89, 5(%rdx)                 # present, available 64-bit TSS
    movb %ah, 7(%rdx)
    addl $0x30, %ecx
    ltr %cx
    lidt idt_pointer

    # To CPL 3 with interrupts off, on this vCPU's stack.
    leal 1(%edi), %ecx
    shll $13, %ecx
    addl $stacks - 8, %ecx
    pushq $0x1b
    pushq %rcx
    pushq $0x2
    pushq $0x23
    pushq $start
    iretq

# Exception stubs, 16 bytes each: bring the stack to the form vector, error code, frame.
    .balign 16
    .global exception_stubs
exception_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp exception
    .set vector, vector + 1
    .endr

exception:
    cmpq $park, 16(%rsp)                # the report is done, see `park`
    je halt
    cmpq $ask_cpuid, 16(%rsp)           # a question, see `ask_cpuid`
    je answer_cpuid
    testb $3, 24(%rsp)                  # an exception of this file itself: nothing can be told
    jz halt
    popq %rdi                           # vector
    popq %rdx                           # error code
    movq (%rsp), %rsi                   # RIP
    movq %cr2, %rcx
    movq %rsp, %r8
    subq $exception_stacks, %r8
    shrq $9, %r8                        # index of the vCPU
    movq $report, (%rsp)
    andq $-16, 24(%rsp)
    subq $8, 24(%rsp)
    iretq

answer_cpuid:
    addq $16, %rsp
    addq $2, (%rsp)                     # go on behind the ud2
    cpuid
    iretq

halt:
    cli
    hlt
    jmp halt

# CPUID as CPL 0 sees it: EAX and ECX in, all four registers out. Some KVMs mask it there only.
    .global ask_cpuid
ask_cpuid:
    ud2
    ret

# Stops the vCPU for good: the exception handler knows this instruction.
    .global park
park:
    ud2

    .data
    .balign 4096
page_map:
    .quad directory_table + 7           # present, writable, user
    .fill 511, 8, 0
    .global directory_table
directory_table:
    .quad first_directory + 7
    .fill 511, 8, 0
first_directory:
    .set address, 0
    .rept 512
    .quad address + 0x87                # present, writable, user, 2 MiB
    .set address, address + 0x200000
    .endr

    .balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff            # 0x08 code, CPL 0
    .quad 0x00cf93000000ffff            # 0x10 data, CPL 0
    .quad 0x00cff3000000ffff            # 0x18 data, CPL 3
    .quad 0x00affb000000ffff            # 0x20 code, CPL 3
    .quad 0
task_descriptors:                       # 0x30
    .fill 64 * 2, 8, 0
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 32 * 16 - 1
    .quad interrupt_gates

    .bss
    .balign 4096
    .global interrupt_gates
interrupt_gates:
    .skip 32 * 16
    .global task_states
task_states:
    .skip 64 * 256
exception_stacks:
    .skip 64 * 512
stacks:
    .skip 64 * 8192
