# Process 1 of the lab. Mounts the shares, loads what the tests' hosts need, runs the command (or a shell, when
# there is none) and switches the machine off.
export PATH=/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=${TERM:-linux} LANG=C.UTF-8
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /dev/pts /dev/shm /run/netns
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
ip link set lo up
hostname lab
ulimit -l unlimited
while read -r tag mode path; do
    mkdir -p "$path"
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,cache=mmap,$mode" "$tag" "$path"
done < /control/shares
modprobe -a kvm-amd tun veth bridge sch_netem nf_tables

if [ ! -e /control/command ]; then
    # A terminal's size doesn't come over a serial line by itself.
    [ -e /control/size ] && stty $(cat /control/size) < /dev/console
    echo "A shell in the lab. exit ends it, and Ctrl-A x in any case."
    setsid -c bash < /dev/ttyS0 > /dev/ttyS0 2>&1
    echo 0 > /control/code
else
    for name in /sys/class/virtio-ports/*/name; do
        [ "$(cat "$name")" = output ] && output=/dev/$(basename "$(dirname "$name")")
    done
    timeout -k 5 "$(cat /control/timeout)" setsid bash /control/command < /dev/null > "$output" 2>&1
    echo $? > /control/code.new
    mv /control/code.new /control/code
fi
sync
echo o > /proc/sysrq-trigger
sleep 30
