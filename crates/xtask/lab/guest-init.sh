#!/bin/busybox sh
# /init of the lab's guests. Words of the kernel's command line that are for us:
#   lab.ip=10.0.0.2/24   the address of eth0
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ PS1='guest# '
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /tmp /run /etc/acpi/PWRF
mount -t devpts devpts /dev/pts
for module in $(cat /modules/order); do insmod /modules/$module || echo "lab: can't load $module"; done

# The power button.
printf '#!/bin/sh\necho "lab: power button"\nexec poweroff -f\n' > /etc/acpi/PWRF/00000080
chmod +x /etc/acpi/PWRF/00000080
acpid -d > /run/acpid.log 2>&1 &

# What no guest may have had to say since it has booted, or was asked last. (While it boots, Linux calls the TSCs of several AMD vCPUs without a
# constant TSC unsynchronised, and goes by kvmclock: on any hypervisor of this CPU.)
dmesg | wc -l > /run/booted
cat > /bin/complaints <<'SCRIPT'
#!/bin/sh
dmesg > /run/messages
tail -n "+$(($(cat /run/booted) + 1))" /run/messages | grep -iE 'lockup|rcu.*stall|unstable|skew|hung_task|blocked for more|BUG:|Oops|Call Trace' > /run/complaints
wc -l < /run/messages > /run/booted
cat /run/complaints
echo "$(wc -l < /run/complaints) complaints."
SCRIPT
chmod +x /bin/complaints

ip link set lo up
for word in $(cat /proc/cmdline); do
    case $word in
        lab.ip=*)
            ip link set eth0 up && ip address add "${word#lab.ip=}" dev eth0 || echo "lab: no eth0"
            ;;
    esac
done
migrated-witness serve &
while :; do setsid cttyhack sh; done
