// d3d12.dll beside python.exe, before Wine's own: the same device, with what DirectML and GenAI need.
//
// - No meta commands. Wine's EnumerateMetaCommands returns E_NOTIMPL, on which DirectML gives up.
// - No 64-bit integers and no wave operations in shaders. Wine says that the device has them; its shader model 5.1 has
//   neither, and DirectML's shaders that use them fail.
// - One device of the GPU for a whole process, as on Windows. Wine makes a new one each time, and what one has allocated
//   is lost on another: ONNX Runtime's OrtValues on DirectML have a device, and each session asks for one.
// - No Agility SDK (D3D12GetInterface), which Wine does not export. GenAI warns and goes on without.
#define COBJMACROS
#define INITGUID
#include <windows.h>
#include <d3d12.h>

static FARPROC wine(const char *name) {
    static HMODULE library;
    if (!library) {
        WCHAR path[MAX_PATH];
        UINT length = GetSystemDirectoryW(path, MAX_PATH - 16);
        lstrcpyW(path + length, L"\\d3d12.dll");
        library = LoadLibraryW(path);
    }
    return library ? GetProcAddress(library, name) : NULL;
}

static HRESULT(WINAPI *check_feature_support)(ID3D12Device *, D3D12_FEATURE, void *, UINT);

static HRESULT WINAPI checked_feature_support(ID3D12Device *device, D3D12_FEATURE feature, void *data, UINT size) {
    HRESULT result = check_feature_support(device, feature, data, size);
    if (result == S_OK && feature == D3D12_FEATURE_D3D12_OPTIONS1) {
        D3D12_FEATURE_DATA_D3D12_OPTIONS1 *options = data;
        options->WaveOps = FALSE;
        options->Int64ShaderOps = FALSE;
    }
    return result;
}

static HRESULT WINAPI no_meta_commands(ID3D12Device5 *device, UINT *count, D3D12_META_COMMAND_DESC *descriptions) {
    (void)device, (void)descriptions;
    *count = 0;
    return S_OK;
}

static void replace(void *method, void *replacement) {
    DWORD before;
    VirtualProtect(method, sizeof(void *), PAGE_READWRITE, &before);
    *(void **)method = replacement;
}

static SRWLOCK creating = SRWLOCK_INIT;
static ID3D12Device5 *only;

static HRESULT create_or_share(IUnknown *adapter, D3D_FEATURE_LEVEL level, REFIID iid, void **device) {
    __typeof__(&D3D12CreateDevice) create = (__typeof__(&D3D12CreateDevice))wine("D3D12CreateDevice");
    if (!create) return E_NOTIMPL;
    if (only && device) return IUnknown_QueryInterface((IUnknown *)only, iid, device);
    HRESULT result = create(adapter, level, iid, device);
    if (result != S_OK || !device || !*device) return result;
    if (IUnknown_QueryInterface((IUnknown *)*device, &IID_ID3D12Device5, (void **)&only) == S_OK) {
        check_feature_support = (void *)only->lpVtbl->CheckFeatureSupport;
        replace(&only->lpVtbl->CheckFeatureSupport, checked_feature_support);
        replace(&only->lpVtbl->EnumerateMetaCommands, no_meta_commands);
    }
    return result;
}

HRESULT WINAPI D3D12CreateDevice(IUnknown *adapter, D3D_FEATURE_LEVEL level, REFIID iid, void **device) {
    AcquireSRWLockExclusive(&creating);
    HRESULT result = create_or_share(adapter, level, iid, device);
    ReleaseSRWLockExclusive(&creating);
    return result;
}

HRESULT WINAPI D3D12GetInterface(REFCLSID class, REFIID iid, void **object) {
    (void)class, (void)iid;
    if (object) *object = NULL;
    return E_NOINTERFACE;
}

#define PASS_ON(name, parameters, arguments)                     \
    HRESULT WINAPI name parameters {                             \
        __typeof__(&name) own = (__typeof__(&name))wine(#name);  \
        return own ? own arguments : E_NOTIMPL;                  \
    }

PASS_ON(D3D12GetDebugInterface, (REFIID iid, void **debug), (iid, debug))
PASS_ON(D3D12EnableExperimentalFeatures, (UINT count, const IID *iids, void *settings, UINT *sizes),
        (count, iids, settings, sizes))
PASS_ON(D3D12SerializeRootSignature,
        (const D3D12_ROOT_SIGNATURE_DESC *description, D3D_ROOT_SIGNATURE_VERSION version, ID3DBlob **blob,
         ID3DBlob **error),
        (description, version, blob, error))
PASS_ON(D3D12SerializeVersionedRootSignature,
        (const D3D12_VERSIONED_ROOT_SIGNATURE_DESC *description, ID3DBlob **blob, ID3DBlob **error),
        (description, blob, error))
PASS_ON(D3D12CreateRootSignatureDeserializer, (const void *data, SIZE_T size, REFIID iid, void **deserializer),
        (data, size, iid, deserializer))
PASS_ON(D3D12CreateVersionedRootSignatureDeserializer, (const void *data, SIZE_T size, REFIID iid, void **deserializer),
        (data, size, iid, deserializer))
