# This folder as BR2_EXTERNAL. Written, not run. Steps: docs/install.md#buildroot.
include $(BR2_EXTERNAL_BACKHAUL_PATH)/backhaul.mk
