# A kind node without the images that run on it, as kind's own Dockerfile has it (`images/base` in its module),
# made from a Debian root file system, kind's files and binaries that are there already.
ARG ROOT_FILE_SYSTEM
FROM ${ROOT_FILE_SYSTEM}
COPY files/ /

# systemd shall start what a node needs and nothing that a whole machine would.
RUN find /lib/systemd/system/sysinit.target.wants/ -name systemd-tmpfiles-setup.service -delete \
    && rm -f /lib/systemd/system/multi-user.target.wants/* /etc/systemd/system/*.wants/* \
        /lib/systemd/system/local-fs.target.wants/* /lib/systemd/system/sockets.target.wants/*udev* \
        /lib/systemd/system/sockets.target.wants/*initctl* /lib/systemd/system/basic.target.wants/* \
    && echo ReadKMsg=no >>/etc/systemd/journald.conf \
    && ln -sf /lib/systemd/systemd /sbin/init \
    && systemctl enable kubelet.service containerd.service undo-mount-hacks.service \
    && systemctl mask systemd-binfmt.service \
    && mkdir -p /etc/kubernetes/manifests /opt/cni/bin \
    && cp /usr/lib/cni/loopback /usr/lib/cni/ptp /usr/lib/cni/host-local /usr/lib/cni/portmap /opt/cni/bin/

# What every container in a node starts from: product files that differ by node, and no limits of the machine's.
RUN ctr oci spec \
    | jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
    >/etc/containerd/cri-base.json

ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
