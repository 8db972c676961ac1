#!/bin/busybox sh
# The guest's first process: the host's files read-only under a tmpfs, the devices, then the command.
# guest.py writes /settings: EARLY, LATE (commands that load modules), RESULTS, ENTRY, LIMIT_S.
export PATH=/bin
/bin/busybox --install -s /bin
. /settings

# A guest whose launcher was killed ends all the same.
mknod /dev/null c 1 3
(sleep "$LIMIT_S"; poweroff -f) &

mkdir -p /proc /sys /host /layer /system
mount -t proc proc /proc
eval "$EARLY"
shared=trans=virtio,version=9p2000.L,msize=1048576
mount -t 9p -o "$shared,cache=loose,ro" host /host
mount -t tmpfs layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work system /system
mount -t 9p -o "$shared" results "/system$RESULTS"

mount -t proc proc /system/proc
mount -t sysfs sys /system/sys
mount -t devtmpfs dev /system/dev
mkdir -p /system/dev/pts /system/dev/shm
mount -t devpts pts /system/dev/pts
mount -t tmpfs shm /system/dev/shm
ln -s /proc/self/fd /system/dev/fd
mount -o bind /system/sys /sys
eval "$LATE"
ip link set lo up
ip link add vcan0 type vcan
ifconfig vcan0 txqueuelen 1000 up
dmesg -c > /system/dev/null

# Not a terminal: nothing draws over its own lines.
chroot /system /bin/sh "$ENTRY" 2>&1 | cat
poweroff -f
