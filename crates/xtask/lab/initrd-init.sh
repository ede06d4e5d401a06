#!/bin/busybox sh
# /init of the lab's initramfs: mounts the lab's root, which the host shares read-only, under a layer of RAM.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/order); do insmod /modules/$module || echo "can't load $module"; done
options=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o ro,cache=loose,$options root /ro
mount -t tmpfs -o mode=755 tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work overlay /new
mount -t 9p -o cache=mmap,$options control /new/control
for dir in proc sys dev; do mount --move /$dir /new/$dir; done
exec switch_root /new /bin/sh /control/init
