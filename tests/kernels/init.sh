#!/bin/busybox sh
# PID 1 of the guest, in the initramfs: loads the modules, puts the host's root file system (read-only) in place
# and hands over to guest.sh in the shared folder.
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev /host /share /keep
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "guest: cannot load $module"
done
ip link set lo up
options=trans=virtio,version=9p2000.L,msize=512000
if ! mount -t 9p -o "ro,cache=loose,$options" host /host || ! mount -t 9p -o "rw,$options" share /share; then
    echo "guest: cannot mount the host's file systems"
    poweroff -f
fi

# The folders that the tests need, kept at hand: the mounts below may hide them.
count=0
while read -r path; do
    count=$((count + 1))
    mkdir "/keep/$count"
    mount --bind "/host$path" "/keep/$count"
done </share/reach

for folder in tmp run var/tmp; do
    mount -t tmpfs -o mode=1777 tmpfs "/host/$folder"
done

# A parent that only its owner may enter is replaced by a folder that everybody may enter.
while read -r path; do
    parent=$(dirname "$path")
    while [ "$parent" != / ]; do
        case $(stat -c %A "/host$parent" 2>/dev/null) in
            *[xt] | '') ;;
            *) mount -t tmpfs -o mode=755 tmpfs "/host$parent" ;;
        esac
        parent=$(dirname "$parent")
    done
done </share/reach

count=0
while read -r path; do
    count=$((count + 1))
    mkdir -p "/host$path"
    mount --move "/keep/$count" "/host$path"
done </share/reach

mkdir -m 755 /host/run/share
mount --move /share /host/run/share
for folder in proc sys dev; do
    mount --move "/$folder" "/host/$folder"
done
exec switch_root /host /bin/sh /run/share/guest.sh
